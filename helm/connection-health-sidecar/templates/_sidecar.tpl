{{/*
For the charts that depend on this one: the parts of a pod with a sidecar. Hand over your own `.`:

    metadata:
      annotations:
        {{- include "connection-health-sidecar.podAnnotations" . | nindent 8 }}
      labels:
        {{- include "connection-health-sidecar.podLabels" . | nindent 8 }}
    spec:
      initContainers:
        {{- include "connection-health-sidecar.initContainers" . | nindent 8 }}
      containers:
        {{- include "connection-health-sidecar.containers" . | nindent 8 }}
        - name: …
          readinessProbe:
            {{- include "connection-health-sidecar.readinessProbe" . | nindent 12 }}
      volumes:
        {{- include "connection-health-sidecar.volumes" . | nindent 8 }}

The values are those under `connection-health-sidecar` in your values.yaml. Which of the two lists the container is in,
`sidecar.container` decides; the other template gives nothing. Under an alias, hand over `.Subcharts.ALIAS`.
*/}}

{{/* Gives what its first argument names, in this chart's own context: (list context template …). */}}
{{- define "connection-health-sidecar.internal.within" -}}
{{- $context := first . -}}
{{- $own := get ($context.Subcharts | default dict) "connection-health-sidecar" | default $context -}}
{{- if not (hasKey $own.Values "persistence") -}}
{{- fail "connection-health-sidecar: its templates take the context of a chart that depends on it, or, under an alias, .Subcharts.ALIAS" -}}
{{- end -}}
{{- if $own.Values.enabled -}}
{{- if ne $own.Values.mode "sidecar" -}}
{{- fail "connection-health-sidecar.mode: takes `sidecar` where its templates are included" -}}
{{- end -}}
{{- include (index . 1) $own -}}
{{- end -}}
{{- end -}}

{{- define "connection-health-sidecar.initContainers" -}}
{{- include "connection-health-sidecar.internal.within" (list . "connection-health-sidecar.internal.asInitContainer") -}}
{{- end -}}

{{- define "connection-health-sidecar.internal.asInitContainer" -}}
{{- if eq .Values.sidecar.container "native" -}}
- {{ include "connection-health-sidecar.internal.container" (list . "native") | nindent 2 | trim }}
{{- end -}}
{{- end -}}

{{- define "connection-health-sidecar.containers" -}}
{{- include "connection-health-sidecar.internal.within" (list . "connection-health-sidecar.internal.asContainer") -}}
{{- end -}}

{{- define "connection-health-sidecar.internal.asContainer" -}}
{{- if eq .Values.sidecar.container "plain" -}}
- {{ include "connection-health-sidecar.internal.container" (list . "plain") | nindent 2 | trim }}
{{- end -}}
{{- end -}}

{{- define "connection-health-sidecar.volumes" -}}
{{- include "connection-health-sidecar.internal.within" (list . "connection-health-sidecar.internal.volumes") -}}
{{- end -}}

{{- define "connection-health-sidecar.podLabels" -}}
{{- include "connection-health-sidecar.internal.within" (list . "connection-health-sidecar.internal.podLabels") -}}
{{- end -}}

{{/* The pods follow the configuration: a change of it replaces them. */}}
{{- define "connection-health-sidecar.podAnnotations" -}}
{{- include "connection-health-sidecar.internal.within" (list . "connection-health-sidecar.internal.podAnnotations") -}}
{{- end -}}

{{- define "connection-health-sidecar.internal.podAnnotations" -}}
checksum/connection-health-sidecar: {{ include "connection-health-sidecar.internal.config" . | sha256sum }}
{{- end -}}

{{/* Where the application finds the sidecar, `http://127.0.0.1:8080`, and where a Job tells a plain one to leave. */}}
{{- define "connection-health-sidecar.url" -}}
{{- include "connection-health-sidecar.internal.within" (list . "connection-health-sidecar.internal.url") -}}
{{- end -}}

{{- define "connection-health-sidecar.internal.url" -}}
http://127.0.0.1:{{ include "connection-health-sidecar.internal.httpPort" . }}
{{- end -}}

{{- define "connection-health-sidecar.adminUrl" -}}
{{- include "connection-health-sidecar.internal.within" (list . "connection-health-sidecar.internal.adminUrl") -}}
{{- end -}}

{{- define "connection-health-sidecar.internal.adminUrl" -}}
http://127.0.0.1:{{ include "connection-health-sidecar.internal.adminPort" . }}
{{- end -}}

{{/* For a container of the application that has no readiness probe of its own; one that has: `sidecar.readinessProbe`. */}}
{{- define "connection-health-sidecar.readinessProbe" -}}
{{- include "connection-health-sidecar.internal.within" (list . "connection-health-sidecar.internal.readinessProbe") -}}
{{- end -}}

{{- define "connection-health-sidecar.internal.readinessProbe" -}}
httpGet:
  path: /health
  port: {{ include "connection-health-sidecar.internal.httpPort" . }}
{{- with .Values.probes.readiness }}
{{ toYaml . }}
{{- end }}
{{- end -}}
