{{- define "stacked.name" -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | replace "stacked-stacked" "stacked" | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "stacked.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "stacked.labels" -}}
{{ include "stacked.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- /* The configuration file: what the chart knows, below what the values say. */ -}}
{{- define "stacked.config" -}}
{{- $server := dict "host" "0.0.0.0" "port" 8080 "log" "json" "metrics" (dict "host" "0.0.0.0" "port" 9090) -}}
{{- if .Values.auth.secret -}}
{{- $_ := set $server "auth" (dict "bearer" true "directory" "/etc/stacked/keys") -}}
{{- else if .Values.auth.open -}}
{{- $_ := set $server "auth" (dict "none" true) -}}
{{- else -}}
{{- fail "auth.secret: name a secret with credentials, or set auth.open to true if whoever reaches the service may use it" -}}
{{- end -}}
{{- if .Values.tls.secret -}}
{{- $_ := set $server "tls" (dict "cert" "/etc/stacked/tls/tls.crt" "key" "/etc/stacked/tls/tls.key") -}}
{{- end -}}
{{- $own := dict "server" $server -}}
{{- if .Values.database.secret -}}
{{- $_ := set $own "fleet" dict -}}
{{- if not (or .Values.contents.address .Values.contents.claim) -}}
{{- fail "contents: a fleet's replicas need one place for adapters; set contents.address or contents.claim" -}}
{{- end -}}
{{- else if gt (int .Values.replicas) 1 -}}
{{- fail "database.secret: more than one replica is a fleet, whose records are in PostgreSQL" -}}
{{- end -}}
{{- if and .Values.contents.address .Values.contents.claim -}}
{{- fail "contents: set address or claim, not both" -}}
{{- end -}}
{{- $given := deepCopy .Values.config -}}
{{- toYaml (mergeOverwrite $own $given) -}}
{{- end -}}
