{{/* The container and its volumes, the same in every mode. */}}

{{- define "connection-health-sidecar.internal.securityContext" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
readOnlyRootFilesystem: true
runAsNonRoot: true
{{- if not (kindIs "invalid" .Values.securityContext.runAsUser) }}
runAsUser: {{ int .Values.securityContext.runAsUser }}
{{- end }}
{{- if not (kindIs "invalid" .Values.securityContext.runAsGroup) }}
runAsGroup: {{ int .Values.securityContext.runAsGroup }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "connection-health-sidecar.internal.podSecurityContext" -}}
runAsNonRoot: true
seccompProfile:
  type: RuntimeDefault
{{- if not (kindIs "invalid" .Values.securityContext.fsGroup) }}
fsGroup: {{ int .Values.securityContext.fsGroup }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
{{- end -}}

{{/* Hand over (list context kind), kind being native, plain or standalone. */}}
{{- define "connection-health-sidecar.internal.container" -}}
{{- $kind := last . -}}
{{- with first . -}}
name: connection-health-sidecar
image: {{ include "connection-health-sidecar.internal.image" . | quote }}
{{- with .Values.image.pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
args: [run]
{{- if eq $kind "native" }}
restartPolicy: Always
{{- end }}
env:
  - name: SIDECAR_CONFIG
    value: /etc/connection-health-sidecar/config.yaml
  {{- if eq .Values.persistence.type "postgresql" }}
  - name: SIDECAR_STORE__URL
    valueFrom:
      secretKeyRef:
        name: {{ .Values.persistence.postgresql.url.secretName }}
        key: {{ .Values.persistence.postgresql.url.key }}
  {{- else }}
  # SQLite sorts in temporary files when there is much to sort, and the root file system is read-only.
  - name: TMPDIR
    value: {{ include "connection-health-sidecar.internal.evidencePath" . }}
  {{- end }}
  {{- range $name, $given := .Values.credentials }}
  {{- with $given.url }}
  - name: SIDECAR_TARGETS__{{ upper $name }}__URL
    valueFrom:
      secretKeyRef:
        name: {{ .secretName }}
        key: {{ .key }}
  {{- end }}
  {{- end }}
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
ports:
  - name: sidecar-http
    containerPort: {{ include "connection-health-sidecar.internal.httpPort" . }}
    protocol: TCP
{{- with .Values.probes.startup }}
startupProbe:
  httpGet:
    path: /startupz
    port: sidecar-http
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.probes.liveness }}
livenessProbe:
  httpGet:
    path: /livez
    port: sidecar-http
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if or (eq $kind "standalone") (and (eq .Values.mode "sidecar") .Values.sidecar.readinessProbe) }}
{{- with .Values.probes.readiness }}
readinessProbe:
  httpGet:
    path: /health
    port: sidecar-http
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- $sleeps := and (ne $kind "native") (gt (int .Values.preStopSleepSeconds) 0) (semverCompare ">=1.30-0" .Capabilities.KubeVersion.Version) }}
{{- if or $sleeps (eq $kind "plain") }}
lifecycle:
  {{- if eq $kind "plain" }}
  # Containers start in the order of their list, each after this hook of the one before: what stands below the sidecar
  # finds it started. Should it take longer, the application starts all the same.
  postStart:
    exec:
      command: [sidecar, wait, --for, started, --timeout, 60s]
  {{- end }}
  {{- if $sleeps }}
  preStop:
    sleep:
      seconds: {{ int .Values.preStopSleepSeconds }}
  {{- end }}
{{- end }}
{{- with .Values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "connection-health-sidecar.internal.securityContext" . | nindent 2 }}
# A fault in the configuration is told in the pod's status.
terminationMessagePolicy: FallbackToLogsOnError
volumeMounts:
  {{- include "connection-health-sidecar.internal.volumeMounts" . | nindent 2 }}
{{- end -}}
{{- end -}}

{{- define "connection-health-sidecar.internal.volumeMounts" -}}
- name: connection-health-config
  mountPath: /etc/connection-health-sidecar
  readOnly: true
{{- if ne .Values.persistence.type "postgresql" }}
- name: connection-health-evidence
  mountPath: {{ include "connection-health-sidecar.internal.evidencePath" . }}
{{- end }}
{{- if include "connection-health-sidecar.internal.credentialSources" . }}
- name: connection-health-credentials
  mountPath: {{ include "connection-health-sidecar.internal.credentialsPath" . }}
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "connection-health-sidecar.internal.volumes" -}}
- name: connection-health-config
  configMap:
    name: {{ include "connection-health-sidecar.internal.fullname" . }}
{{- if eq .Values.persistence.type "emptyDir" }}
- name: connection-health-evidence
  {{- with .Values.persistence.emptyDir.sizeLimit }}
  emptyDir:
    sizeLimit: {{ . }}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- else if eq .Values.persistence.type "pvc" }}
- name: connection-health-evidence
  persistentVolumeClaim:
    claimName: {{ include "connection-health-sidecar.internal.claim" . }}
{{- end }}
{{- with include "connection-health-sidecar.internal.credentialSources" . }}
- name: connection-health-credentials
  projected:
    # Read by the sidecar's user, whoever owns the pod's volumes; mounted nowhere else.
    defaultMode: 0444
    sources:
      {{- trim . | nindent 6 }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Whole folders, not single files: only those are renewed when a Secret changes. */}}
{{- define "connection-health-sidecar.internal.credentialSources" -}}
{{- range $name, $given := .Values.credentials }}
{{- with $given.password }}
- secret:
    name: {{ .secretName }}
    items:
      - key: {{ .key }}
        path: {{ $name }}/password
{{- end }}
{{- with $given.ca }}
- {{ if .secretName }}secret{{ else }}configMap{{ end }}:
    name: {{ default .configMapName .secretName }}
    items:
      - key: {{ .key }}
        path: {{ $name }}/ca.crt
{{- end }}
{{- with $given.clientCertificate }}
- secret:
    name: {{ .secretName }}
    items:
      - key: {{ .certKey }}
        path: {{ $name }}/tls.crt
      - key: {{ .keyKey }}
        path: {{ $name }}/tls.key
{{- end }}
{{- end }}
{{- end -}}
