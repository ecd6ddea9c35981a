{{- define "placement.name" -}}
{{- $name := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- $name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "placement.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "placement.labels" -}}
{{ include "placement.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "placement.image" -}}
{{- with .Values.image }}{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}{{ end }}
{{- end }}

{{- /* Solves side by side: one for two cores of the CPU limit, which is "4", "1.5" or "1500m". */ -}}
{{- define "placement.maxJobs" -}}
{{- if .Values.maxJobs -}}
{{- .Values.maxJobs -}}
{{- else -}}
{{- $limit := toString .Values.resources.limits.cpu -}}
{{- $cores := float64 $limit -}}
{{- if hasSuffix "m" $limit }}{{ $cores = divf (float64 (trimSuffix "m" $limit)) 1000.0 }}{{ end -}}
{{- max 1 (int (divf $cores 2.0)) -}}
{{- end -}}
{{- end }}

{{- /* A volume is for one process at a time; the pods of a bucket and PostgreSQL need none. */ -}}
{{- define "placement.shared" -}}
{{- if and .Values.database.postgresql .Values.store.bucket -}}true{{- end -}}
{{- end }}

{{- define "placement.check" -}}
{{- if and (gt (int .Values.replicas) 1) (not (include "placement.shared" .)) }}
{{- fail (printf "replicas=%d share a queue: set database.postgresql to true and store.bucket to s3://BUCKET/FOLDER, or replicas to 1" (int .Values.replicas)) }}
{{- end }}
{{- with .Values.ingress }}{{ if .enabled }}
{{- if not .host }}{{ fail "ingress.enabled needs ingress.host, such as placement.example.com" }}{{ end }}
{{- if not .proxies }}{{ fail "ingress.enabled needs ingress.proxies, the network of the controller's pods, such as 10.0.0.0/8: else all who ask share the limits of one address" }}{{ end }}
{{- end }}{{ end }}
{{- end }}

{{- define "placement.databaseEnv" -}}
{{- if .Values.database.postgresql -}}
- name: PLACEMENT_DATABASE_URL
  valueFrom: {secretKeyRef: {name: {{ .Values.secret }}, key: database-url}}
{{ end }}
{{- end }}

{{- define "placement.env" -}}
{{- include "placement.databaseEnv" . -}}
{{- if include "placement.shared" . -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
{{ end -}}
{{- if .Values.ingress.enabled -}}
- name: FORWARDED_ALLOW_IPS
  value: {{ .Values.ingress.proxies | quote }}
{{ end -}}
{{- end }}

{{- define "placement.locked" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
