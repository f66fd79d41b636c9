{{/* Names and labels. Those of the objects that this chart renders itself. */}}

{{- define "connection-health-sidecar.internal.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "connection-health-sidecar.internal.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "connection-health-sidecar.internal.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "connection-health-sidecar.internal.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{/* What a PodMonitor finds the pods by, in every mode. */}}
{{- define "connection-health-sidecar.internal.podLabels" -}}
connection-health-sidecar/config: {{ include "connection-health-sidecar.internal.fullname" . }}
{{- end -}}

{{- define "connection-health-sidecar.internal.image" -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- with .Values.image.digest }}@{{ . }}{{ end -}}
{{- end -}}

{{- define "connection-health-sidecar.internal.claim" -}}
{{- default (printf "%s-evidence" (include "connection-health-sidecar.internal.fullname" .) | trunc 63 | trimSuffix "-") .Values.persistence.pvc.existingClaim -}}
{{- end -}}

{{- define "connection-health-sidecar.internal.httpPort" -}}
{{- get (.Values.config.http | default dict) "port" | default 8080 | int -}}
{{- end -}}

{{- define "connection-health-sidecar.internal.adminPort" -}}
{{- get (.Values.config.http | default dict) "admin_port" | default 9091 | int -}}
{{- end -}}
