// The TypeScript SDK's walk: `node typescript.cjs ENDPOINT SDK_CONFIG BASE`, with `oci-common` and
// `oci-datascience` beside it. The last line that is printed is what was seen, as JSON.
const common = require("oci-common");
const { DataScienceClient } = require("oci-datascience");

const [endpoint, config, base] = process.argv.slice(2);
const C = "ocid1.compartment.oc1..c", P = "ocid1.datascienceproject.oc1..p";
const authenticationDetailsProvider =
  new common.ConfigFileAuthenticationDetailsProvider(config, "DEFAULT");
const client = new DataScienceClient({ authenticationDetailsProvider });
client.endpoint = endpoint;

async function settled(id) {
  for (let i = 0; i < 200; i++) {
    const state = (await client.getModelDeployment({ modelDeploymentId: id }))
      .modelDeployment.lifecycleState;
    if (!["CREATING", "UPDATING", "DELETING"].includes(state)) return state;
    await new Promise((done) => setTimeout(done, 100));
  }
  throw new Error(`${id} does not come to rest`);
}

async function main() {
  const seen = {};
  const { model } = await client.createModel({
    createModelDetails: {
      compartmentId: C, projectId: P, displayName: "é",
      customMetadataList: [{ key: "source", value: base }],
    },
  });
  seen.name = (await client.getModel({ modelId: model.id })).model.displayName;
  const { modelGroup } = await client.createModelGroup({
    createBaseModelGroupDetails: {
      createType: "CREATE", compartmentId: C, projectId: P,
      modelGroupDetails: { type: "STACKED", baseModelId: model.id },
      memberModelEntries: { memberModelDetails: [{ modelId: model.id, inferenceKey: "base" }] },
    },
  });
  const made = await client.createModelDeployment({
    createModelDeploymentDetails: {
      compartmentId: C, projectId: P, displayName: "d",
      modelDeploymentConfigurationDetails: {
        deploymentType: "MODEL_GROUP",
        modelGroupConfigurationDetails: { modelGroupId: modelGroup.id },
        infrastructureConfigurationDetails: {
          infrastructureType: "INSTANCE_POOL",
          instanceConfiguration: { instanceShapeName: "VM.GPU.A10.1" },
          scalingPolicy: { policyType: "FIXED_SIZE", instanceCount: 1 },
        },
      },
    },
  });
  const id = made.modelDeployment.id;
  seen.created = await settled(id);
  await client.updateModelDeployment({
    modelDeploymentId: id, updateModelDeploymentDetails: { displayName: "renamed" },
  });
  seen.renamed = (await client.getModelDeployment({ modelDeploymentId: id }))
    .modelDeployment.displayName;
  await client.deactivateModelDeployment({ modelDeploymentId: id });
  seen.deactivated = await settled(id);
  await client.deleteModelDeployment({ modelDeploymentId: id });
  seen.deleted = await settled(id);
  await new Promise((done) => setTimeout(done, 1000)); // the last line of the last work
  const { items } = await client.listWorkRequests({ compartmentId: C, resourceId: id });
  seen.works = items.map((row) => row.status);
  console.log(JSON.stringify(seen));
}

main().catch((error) => { console.error(error); process.exit(1); });
