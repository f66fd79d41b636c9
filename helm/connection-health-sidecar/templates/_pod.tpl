{{/* What the pods of this chart's own Deployment and Job have in common. */}}

{{- define "connection-health-sidecar.internal.podSpec" -}}
automountServiceAccountToken: false
# The sidecar needs nothing of what Kubernetes would tell it about other Services.
enableServiceLinks: false
{{- with .Values.serviceAccountName }}
serviceAccountName: {{ . }}
{{- end }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "connection-health-sidecar.internal.podSecurityContext" . | nindent 2 }}
{{- end -}}
