{{- /* The service listens to others only where there is a token; `token create` makes those of the Secret known. */ -}}
{{- define "placement.initContainers" -}}
# the image's compiled code, onto a volume that takes what another processor model needs beside it
- name: compiled
  image: {{ include "placement.image" . | toYaml }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command: [cp, -R, --preserve=timestamps, /var/cache/placement/., /compiled]
  securityContext: {{- include "placement.locked" . | nindent 4 }}
  resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {memory: 256Mi}}
  volumeMounts:
    - {name: compiled, mountPath: /compiled}
{{ include "placement.tokenContainer" (list . "token" "admin") }}
{{- if .Values.metrics.serviceMonitor.enabled }}
{{ include "placement.tokenContainer" (list . "metrics-token" "metrics") }}
{{- end }}
{{- end }}

{{- define "placement.tokenContainer" -}}
{{- $key := index . 1 }}{{ $scope := index . 2 -}}
{{- with first . -}}
- name: {{ $key }}
  image: {{ include "placement.image" . | toYaml }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args: [token, create, kubernetes-{{ $scope }}, --scope={{ $scope }}, --token-file=/secrets/{{ $key }}, --data=/data]
  {{- with include "placement.databaseEnv" . }}
  env: {{- trim . | nindent 4 }}
  {{- end }}
  securityContext: {{- include "placement.locked" . | nindent 4 }}
  resources: {requests: {cpu: 100m, memory: 512Mi}, limits: {memory: 1Gi}}
  volumeMounts:
    - {name: data, mountPath: /data}
    - {name: compiled, mountPath: /var/cache/placement}
    - {name: tmp, mountPath: /tmp}
    - {name: tokens, mountPath: /secrets, readOnly: true}
{{- end }}
{{- end }}
