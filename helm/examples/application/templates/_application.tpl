{{/* The application's container, in the Deployment and in the Job: (list context argument). */}}
{{- define "application.container" -}}
{{- $argument := last . -}}
{{- with first . -}}
name: application
image: {{ printf "%s:%s" .Values.image.repository .Values.image.tag | quote }}
command: [python, /app/app.py, {{ $argument }}]
env:
  - name: DATABASE_URL
    value: {{ .Values.database.url | quote }}
  - name: PASSWORD_FILE
    value: /var/run/secrets/database/password
  # Empty where the sidecar is switched off.
  - name: HEALTH_URL
    value: {{ include "connection-health-sidecar.url" . | quote }}
  {{- if and (eq $argument "report") (include "connection-health-sidecar.containers" .) }}
  - name: QUIT_URL
    value: {{ include "connection-health-sidecar.adminUrl" . | quote }}
  {{- end }}
{{- if eq $argument "serve" }}
ports:
  - name: http
    containerPort: 8000
{{- with include "connection-health-sidecar.readinessProbe" . }}
readinessProbe:
  {{- . | nindent 2 }}
{{- end }}
{{- end }}
resources:
  requests: {cpu: 50m, memory: 128Mi}
  limits: {memory: 256Mi}
securityContext:
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  runAsUser: 65532
  seccompProfile: {type: RuntimeDefault}
volumeMounts:
  - {name: application, mountPath: /app, readOnly: true}
  - {name: database, mountPath: /var/run/secrets/database, readOnly: true}
{{- end -}}
{{- end -}}

{{- define "application.volumes" -}}
- name: application
  configMap:
    name: {{ .Release.Name }}-application
- name: database
  secret:
    secretName: {{ .Values.database.password.secretName }}
    defaultMode: 0444
    items:
      - {key: {{ .Values.database.password.key }}, path: password}
{{- end -}}
