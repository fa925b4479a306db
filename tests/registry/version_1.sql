-- A registry of version 1, as its first release wrote it; never to be edited.
BEGIN TRANSACTION;
CREATE TABLE deployed_members (
        seq INTEGER NOT NULL PRIMARY KEY,
        deployment_id TEXT NOT NULL REFERENCES deployments (id),
        group_id TEXT NOT NULL REFERENCES model_groups (id),
        position INTEGER NOT NULL,
        model_id TEXT NOT NULL REFERENCES models (id),
        "key" TEXT,
        state TEXT NOT NULL,
        reason TEXT NOT NULL,
        time_created TEXT NOT NULL,
        UNIQUE (deployment_id, group_id, position)
    );
INSERT INTO "deployed_members" VALUES(1,'ocid1.datasciencemodeldeployment.oc1..1a6495f232854947a088b6b1c059848460477926','ocid1.datasciencemodelgroup.oc1..4a4567d320904f29945d7c0be3f0785602274554',0,'ocid1.datasciencemodel.oc1..base','base','SUCCESS','','2026-11-22T07:37:10.799754Z');
INSERT INTO "deployed_members" VALUES(2,'ocid1.datasciencemodeldeployment.oc1..1a6495f232854947a088b6b1c059848460477926','ocid1.datasciencemodelgroup.oc1..4a4567d320904f29945d7c0be3f0785602274554',1,'ocid1.datasciencemodel.oc1..00000000','k0','SUCCESS','','2026-11-22T07:37:10.799759Z');
INSERT INTO "deployed_members" VALUES(3,'ocid1.datasciencemodeldeployment.oc1..1a6495f232854947a088b6b1c059848460477926','ocid1.datasciencemodelgroup.oc1..4e251eb525b94930a363294128c6e8eb98b0484b',0,'ocid1.datasciencemodel.oc1..base','base','SUCCESS','','2026-11-22T07:37:10.842522Z');
INSERT INTO "deployed_members" VALUES(4,'ocid1.datasciencemodeldeployment.oc1..1a6495f232854947a088b6b1c059848460477926','ocid1.datasciencemodelgroup.oc1..4e251eb525b94930a363294128c6e8eb98b0484b',1,'ocid1.datasciencemodel.oc1..00000001','k1','SUCCESS','','2026-11-22T07:37:10.842527Z');
INSERT INTO "deployed_members" VALUES(5,'ocid1.datasciencemodeldeployment.oc1..1a6495f232854947a088b6b1c059848460477926','ocid1.datasciencemodelgroup.oc1..4e251eb525b94930a363294128c6e8eb98b0484b',2,'ocid1.datasciencemodel.oc1..00000002','k2','SUCCESS','','2026-11-22T07:37:10.842528Z');
CREATE TABLE deployments (
    seq INTEGER NOT NULL PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    display_name TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    created_by TEXT NOT NULL,
    compartment_id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    tags TEXT NOT NULL,
    time_created TEXT NOT NULL,
    time_updated TEXT NOT NULL
,
        description TEXT NOT NULL,
        configuration TEXT NOT NULL,
        group_id TEXT REFERENCES model_groups (id),
        generation INTEGER NOT NULL,
        previous_group_id TEXT REFERENCES model_groups (id),
        work_request_id TEXT REFERENCES work_requests (id)
    );
INSERT INTO "deployments" VALUES(1,'ocid1.datasciencemodeldeployment.oc1..1a6495f232854947a088b6b1c059848460477926','served','ACTIVE','','','','','{}','2026-11-22T07:37:10.763676Z','2026-11-22T07:37:10.851291Z','','{"engine": {"max_loras": 4}}','ocid1.datasciencemodelgroup.oc1..4e251eb525b94930a363294128c6e8eb98b0484b',2,'ocid1.datasciencemodelgroup.oc1..4a4567d320904f29945d7c0be3f0785602274554','ocid1.datascienceworkrequest.oc1..ff55a26d1f5c4f8daa7bd60aa1f00eca38b29700');
CREATE TABLE group_members (
        seq INTEGER NOT NULL PRIMARY KEY,
        group_id TEXT NOT NULL REFERENCES model_groups (id),
        position INTEGER NOT NULL,
        model_id TEXT NOT NULL REFERENCES models (id),
        "key" TEXT,
        UNIQUE (group_id, position),
        UNIQUE (group_id, "key")
    );
INSERT INTO "group_members" VALUES(1,'ocid1.datasciencemodelgroup.oc1..4a4567d320904f29945d7c0be3f0785602274554',0,'ocid1.datasciencemodel.oc1..base','base');
INSERT INTO "group_members" VALUES(2,'ocid1.datasciencemodelgroup.oc1..4a4567d320904f29945d7c0be3f0785602274554',1,'ocid1.datasciencemodel.oc1..00000000','k0');
INSERT INTO "group_members" VALUES(3,'ocid1.datasciencemodelgroup.oc1..4e251eb525b94930a363294128c6e8eb98b0484b',0,'ocid1.datasciencemodel.oc1..base','base');
INSERT INTO "group_members" VALUES(4,'ocid1.datasciencemodelgroup.oc1..4e251eb525b94930a363294128c6e8eb98b0484b',1,'ocid1.datasciencemodel.oc1..00000001','k1');
INSERT INTO "group_members" VALUES(5,'ocid1.datasciencemodelgroup.oc1..4e251eb525b94930a363294128c6e8eb98b0484b',2,'ocid1.datasciencemodel.oc1..00000002','k2');
CREATE TABLE model_groups (
    seq INTEGER NOT NULL PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    display_name TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    created_by TEXT NOT NULL,
    compartment_id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    tags TEXT NOT NULL,
    time_created TEXT NOT NULL,
    time_updated TEXT NOT NULL
,
        description TEXT NOT NULL,
        base_model_id TEXT NOT NULL REFERENCES models (id),
        custom_metadata TEXT NOT NULL,
        version_history_id TEXT REFERENCES version_histories (id),
        version INTEGER,
        version_label TEXT NOT NULL,
        create_type TEXT NOT NULL,
        source_group_id TEXT REFERENCES model_groups (id),
        UNIQUE (version_history_id, version)
    );
INSERT INTO "model_groups" VALUES(1,'ocid1.datasciencemodelgroup.oc1..4a4567d320904f29945d7c0be3f0785602274554','g1','ACTIVE','','','','','{}','2026-11-22T07:37:10.771747Z','2026-11-22T07:37:10.778616Z','','ocid1.datasciencemodel.oc1..base','[{"key": "k", "value": "v"}]','ocid1.datasciencemodelgroupversionhistory.oc1..1fffcdc0568041de9b660874d385ff267332d1d9',1,'','CREATE',NULL);
INSERT INTO "model_groups" VALUES(2,'ocid1.datasciencemodelgroup.oc1..4e251eb525b94930a363294128c6e8eb98b0484b','g2','ACTIVE','','','','','{}','2026-11-22T07:37:10.822439Z','2026-11-22T07:37:10.824759Z','','ocid1.datasciencemodel.oc1..base','[{"key": "k", "value": "v"}]','ocid1.datasciencemodelgroupversionhistory.oc1..1fffcdc0568041de9b660874d385ff267332d1d9',2,'','CREATE',NULL);
CREATE TABLE models (
    seq INTEGER NOT NULL PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    display_name TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    created_by TEXT NOT NULL,
    compartment_id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    tags TEXT NOT NULL,
    time_created TEXT NOT NULL,
    time_updated TEXT NOT NULL
,
        kind TEXT NOT NULL,
        digest TEXT NOT NULL,
        source TEXT NOT NULL,
        rank INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        extra TEXT NOT NULL
    );
INSERT INTO "models" VALUES(1,'ocid1.datasciencemodel.oc1..base','base','ACTIVE','','','','','{}','2026-11-22T07:37:10.729978Z','2026-11-22T07:37:10.729978Z','base','sha256:0000000000000000000000000000000000000000000000000000000000000000','',0,0,'{}');
INSERT INTO "models" VALUES(2,'ocid1.datasciencemodel.oc1..00000000','adapter 000000','ACTIVE','','','','','{}','2026-11-22T07:37:10.730001Z','2026-11-22T07:37:10.730001Z','adapter','sha256:0000000000000000000000000000000000000000000000000000000000000000','',8,1000,'{}');
INSERT INTO "models" VALUES(3,'ocid1.datasciencemodel.oc1..00000001','adapter 000001','ACTIVE','','','','','{}','2026-11-22T07:37:10.730006Z','2026-11-22T07:37:10.730006Z','adapter','sha256:0000000000000000000000000000000000000000000000000000000000000001','',8,1001,'{}');
INSERT INTO "models" VALUES(4,'ocid1.datasciencemodel.oc1..00000002','adapter 000002','ACTIVE','','','','','{}','2026-11-22T07:37:10.730009Z','2026-11-22T07:37:10.730009Z','adapter','sha256:0000000000000000000000000000000000000000000000000000000000000002','',8,1002,'{}');
CREATE TABLE version_histories (
    seq INTEGER NOT NULL PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    display_name TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    created_by TEXT NOT NULL,
    compartment_id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    tags TEXT NOT NULL,
    time_created TEXT NOT NULL,
    time_updated TEXT NOT NULL
,
        description TEXT NOT NULL,
        latest_group_id TEXT REFERENCES model_groups (id)
    );
INSERT INTO "version_histories" VALUES(1,'ocid1.datasciencemodelgroupversionhistory.oc1..1fffcdc0568041de9b660874d385ff267332d1d9','line','ACTIVE','','','','','{}','2026-11-22T07:37:10.751726Z','2026-11-22T07:37:10.824621Z','','ocid1.datasciencemodelgroup.oc1..4e251eb525b94930a363294128c6e8eb98b0484b');
CREATE TABLE work_errors (
        seq INTEGER NOT NULL PRIMARY KEY,
        work_request_id TEXT NOT NULL REFERENCES work_requests (id),
        code TEXT NOT NULL,
        message TEXT NOT NULL,
        model_id TEXT,
        time TEXT NOT NULL
    );
INSERT INTO "work_errors" VALUES(1,'ocid1.datascienceworkrequest.oc1..aa735cd525264b268f8b5dd6b7af4f474b0de3cb','RankRefused','rank 512','ocid1.datasciencemodel.oc1..00000001','2026-11-22T07:37:10.868050Z');
CREATE TABLE work_logs (
        seq INTEGER NOT NULL PRIMARY KEY,
        work_request_id TEXT NOT NULL REFERENCES work_requests (id),
        message TEXT NOT NULL,
        time TEXT NOT NULL
    );
INSERT INTO "work_logs" VALUES(1,'ocid1.datascienceworkrequest.oc1..b85e0dc436a641a6914f98920ad1fa3af88758ff','staging','2026-11-22T07:37:10.796789Z');
INSERT INTO "work_logs" VALUES(2,'ocid1.datascienceworkrequest.oc1..b85e0dc436a641a6914f98920ad1fa3af88758ff','group ocid1.datasciencemodelgroup.oc1..4a4567d320904f29945d7c0be3f0785602274554 is committed, generation 1','2026-11-22T07:37:10.814017Z');
INSERT INTO "work_logs" VALUES(3,'ocid1.datascienceworkrequest.oc1..ff55a26d1f5c4f8daa7bd60aa1f00eca38b29700','staging','2026-11-22T07:37:10.840842Z');
INSERT INTO "work_logs" VALUES(4,'ocid1.datascienceworkrequest.oc1..ff55a26d1f5c4f8daa7bd60aa1f00eca38b29700','group ocid1.datasciencemodelgroup.oc1..4e251eb525b94930a363294128c6e8eb98b0484b is committed, generation 2','2026-11-22T07:37:10.851914Z');
CREATE TABLE work_requests (
        seq INTEGER NOT NULL PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        operation TEXT NOT NULL,
        status TEXT NOT NULL,
        percent FLOAT NOT NULL,
        resources TEXT NOT NULL,
        compartment_id TEXT NOT NULL,
        time_accepted TEXT NOT NULL,
        time_started TEXT,
        time_finished TEXT
    );
INSERT INTO "work_requests" VALUES(1,'ocid1.datascienceworkrequest.oc1..b85e0dc436a641a6914f98920ad1fa3af88758ff','MODEL_DEPLOYMENT_UPDATE','SUCCEEDED',100.0,'[{"action": "UPDATED", "entity": "data-science-model-deployment", "id": "ocid1.datasciencemodeldeployment.oc1..1a6495f232854947a088b6b1c059848460477926", "uri": null}]','','2026-11-22T07:37:10.791695Z','2026-11-22T07:37:10.795960Z','2026-11-22T07:37:10.815962Z');
INSERT INTO "work_requests" VALUES(2,'ocid1.datascienceworkrequest.oc1..ff55a26d1f5c4f8daa7bd60aa1f00eca38b29700','MODEL_DEPLOYMENT_UPDATE','SUCCEEDED',100.0,'[{"action": "UPDATED", "entity": "data-science-model-deployment", "id": "ocid1.datasciencemodeldeployment.oc1..1a6495f232854947a088b6b1c059848460477926", "uri": null}]','','2026-11-22T07:37:10.835642Z','2026-11-22T07:37:10.840303Z','2026-11-22T07:37:10.855815Z');
INSERT INTO "work_requests" VALUES(3,'ocid1.datascienceworkrequest.oc1..aa735cd525264b268f8b5dd6b7af4f474b0de3cb','MODEL_DEPLOYMENT_UPDATE','FAILED',20.0,'[]','','2026-11-22T07:37:10.859622Z','2026-11-22T07:37:10.864178Z','2026-11-22T07:37:10.868695Z');
CREATE INDEX models_by_time_created ON models (time_created);
CREATE INDEX models_by_display_name ON models (display_name);
CREATE INDEX models_by_state ON models (state);
CREATE INDEX version_histories_by_time_created ON version_histories (time_created);
CREATE INDEX version_histories_by_display_name ON version_histories (display_name);
CREATE INDEX version_histories_by_state ON version_histories (state);
CREATE INDEX model_groups_by_time_created ON model_groups (time_created);
CREATE INDEX model_groups_by_display_name ON model_groups (display_name);
CREATE INDEX model_groups_by_state ON model_groups (state);
CREATE INDEX deployments_by_time_created ON deployments (time_created);
CREATE INDEX deployments_by_display_name ON deployments (display_name);
CREATE INDEX deployments_by_state ON deployments (state);
CREATE INDEX models_by_digest ON models (digest);
CREATE INDEX group_members_by_model ON group_members (model_id);
CREATE INDEX work_requests_by_time_accepted ON work_requests (time_accepted);
CREATE INDEX work_requests_by_status ON work_requests (status);
CREATE INDEX work_logs_by_request ON work_logs (work_request_id);
CREATE INDEX work_errors_by_request ON work_errors (work_request_id);
CREATE UNIQUE INDEX version_histories_name ON version_histories (display_name) WHERE state <> 'DELETED';
COMMIT;
PRAGMA user_version = 1;
