{{- define "placement.name" -}}
{{- $name := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- $name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "placement.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ toYaml .Release.Name }}
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

{{- /* A quantity of Kubernetes as a number: "1500m", "4Gi", 2. */ -}}
{{- define "placement.number" -}}
{{- $unit := regexFind "[a-zA-Z]+$" (toString .) -}}
{{- $exponents := dict "k" 1 "M" 2 "G" 3 "T" 4 "P" 5 "E" 6 -}}
{{- $number := float64 (trimSuffix $unit (toString .)) -}}
{{- if eq $unit "m" }}{{ $number = divf $number 1000.0 }}{{ end -}}
{{- $step := ternary 1024.0 1000.0 (hasSuffix "i" $unit) -}}
{{- range until (int (get $exponents (trimSuffix "i" $unit | replace "K" "k"))) }}{{ $number = mulf $number $step }}{{ end -}}
{{- $number -}}
{{- end }}

{{- define "placement.check" -}}
{{- if not (regexMatch "^[a-z][-a-z0-9]*$" .Release.Name) }}
{{- fail (printf "the release's name %q is also the Service's: small letters, digits and hyphens, a letter first" .Release.Name) }}
{{- end }}
{{- range $of, $asked := .Values.resources.requests }}
{{- $limit := get $.Values.resources.limits $of }}
{{- if and $limit (gt (float64 (include "placement.number" $asked)) (float64 (include "placement.number" $limit))) }}
{{- fail (printf "resources.requests.%s=%v is above resources.limits.%s=%v: no pod would be made; ask for less or raise the limit" $of $asked $of $limit) }}
{{- end }}
{{- end }}
{{- if and (gt (int .Values.replicas) 1) (not (include "placement.shared" .)) }}
{{- fail (printf "replicas=%d share a queue: set database.postgresql to true and store.bucket to s3://BUCKET/FOLDER, or replicas to 1" (int .Values.replicas)) }}
{{- end }}
{{- range .Values.extraArgs }}
{{- if regexMatch "^--(host|port|data)(=|$)" . }}
{{- fail (printf "extraArgs: %s is the chart's to set, for its probes, port and volume; leave the option out" .) }}
{{- end }}
{{- end }}
{{- $four := "^((25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\\.){3}(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])(/(3[0-2]|[12]?[0-9]))?$" }}
{{- $six := "^(([0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}|([0-9a-fA-F]{1,4}(:[0-9a-fA-F]{1,4}){0,6})?::([0-9a-fA-F]{1,4}(:[0-9a-fA-F]{1,4}){0,6})?)(/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))?$" }}
{{- range ternary (splitList "," .Values.ingress.proxies) list (ne .Values.ingress.proxies "") }}
{{- if not (or (regexMatch $four (trim .)) (regexMatch $six (trim .))) }}
{{- fail (printf "ingress.proxies: %q is no address and no network; give such as 10.0.0.0/8, several with commas" .) }}
{{- end }}
{{- end }}
{{- with .Values.ingress }}{{ if .enabled }}
{{- if not .host }}{{ fail "ingress.enabled needs ingress.host, such as placement.example.com" }}{{ end }}
{{- if not .proxies }}{{ fail "ingress.enabled needs ingress.proxies, the network of the controller's pods, such as 10.0.0.0/8: else all who ask share the limits of one address" }}{{ end }}
{{- end }}{{ end }}
{{- end }}

{{- define "placement.databaseEnv" -}}
{{- if .Values.database.postgresql -}}
- name: PLACEMENT_DATABASE_URL
  valueFrom: {secretKeyRef: {name: {{ toYaml .Values.secret }}, key: database-url}}
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
