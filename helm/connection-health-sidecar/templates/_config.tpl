{{/* The configuration file: `config`, with the paths of what `credentials` and `persistence` mount. */}}

{{- define "connection-health-sidecar.internal.credentialsPath" -}}/var/run/secrets/connection-health-sidecar{{- end -}}
{{- define "connection-health-sidecar.internal.evidencePath" -}}/var/lib/connection-health-sidecar{{- end -}}

{{- define "connection-health-sidecar.internal.config" -}}
{{- include "connection-health-sidecar.internal.check" . -}}
{{- $config := deepCopy .Values.config -}}
{{- range $name, $given := .Values.credentials -}}
{{- $target := get $config.targets $name | default dict -}}
{{- $path := printf "%s/%s" (include "connection-health-sidecar.internal.credentialsPath" $) $name -}}
{{- if $given.password -}}
{{- $_ := set $target "password_file" (printf "%s/password" $path) -}}
{{- end -}}
{{- $tls := $target.tls | default dict -}}
{{- if $given.ca -}}
{{- $_ := set $tls "ca_file" (printf "%s/ca.crt" $path) -}}
{{- end -}}
{{- if $given.clientCertificate -}}
{{- $_ := set $tls "cert_file" (printf "%s/tls.crt" $path) -}}
{{- $_ := set $tls "key_file" (printf "%s/tls.key" $path) -}}
{{- end -}}
{{- if $tls -}}
{{- $_ := set $target "tls" $tls -}}
{{- end -}}
{{- $_ := set $config.targets $name $target -}}
{{- end -}}
{{- if ne .Values.persistence.type "postgresql" -}}
{{- $_ := set $config "store" (dict "url" (printf "sqlite+aiosqlite:///%s/evidence.db" (include "connection-health-sidecar.internal.evidencePath" .))) -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{/* What the schema cannot see, because it concerns two values that stand apart. Each fault: where, what, what to do. */}}
{{- define "connection-health-sidecar.internal.check" -}}
{{- if not .Values.config.targets -}}
{{- fail "config.targets: empty: takes at least one database, as in `config: {targets: {default: {url: postgresql+asyncpg://user@host:5432/database}}}`" -}}
{{- end -}}
{{- range $name, $given := .Values.credentials -}}
{{- if not (hasKey $.Values.config.targets $name) -}}
{{- fail (printf "credentials.%s: no such target: takes a name of config.targets (%s)" $name (keys $.Values.config.targets | sortAlpha | join ", ")) -}}
{{- end -}}
{{- $target := get $.Values.config.targets $name | default dict -}}
{{- $tls := $target.tls | default dict -}}
{{- if and $given.url $target.url -}}
{{- fail (printf "credentials.%s.url: config.targets.%s.url is given too: takes one of both" $name $name) -}}
{{- end -}}
{{- if and $given.password $target.password_file -}}
{{- fail (printf "credentials.%s.password: config.targets.%s.password_file is given too: takes one of both" $name $name) -}}
{{- end -}}
{{- if and $given.ca $tls.ca_file -}}
{{- fail (printf "credentials.%s.ca: config.targets.%s.tls.ca_file is given too: takes one of both" $name $name) -}}
{{- end -}}
{{- if and $given.clientCertificate (or $tls.cert_file $tls.key_file) -}}
{{- fail (printf "credentials.%s.clientCertificate: config.targets.%s.tls.cert_file or key_file is given too: takes one of both" $name $name) -}}
{{- end -}}
{{- if and $given.ca (not (has $tls.mode (list "verify-ca" "verify-full"))) -}}
{{- fail (printf "credentials.%s.ca: would not be used: takes verify-ca or verify-full as config.targets.%s.tls.mode" $name $name) -}}
{{- end -}}
{{- if and $given.clientCertificate (not (has $tls.mode (list "require" "verify-ca" "verify-full"))) -}}
{{- fail (printf "credentials.%s.clientCertificate: may not be used: takes require, verify-ca or verify-full as config.targets.%s.tls.mode" $name $name) -}}
{{- end -}}
{{- end -}}
{{- range $name, $target := .Values.config.targets -}}
{{- if not (or (get ($target | default dict) "url") (dig $name "url" "" $.Values.credentials)) -}}
{{- fail (printf "config.targets.%s.url: missing: takes postgresql+asyncpg://user@host:5432/database, or its Secret as credentials.%s.url" $name $name) -}}
{{- end -}}
{{- end -}}
{{- if eq (include "connection-health-sidecar.internal.httpPort" .) (include "connection-health-sidecar.internal.adminPort" .) -}}
{{- fail "config.http.admin_port: the same as port: takes another one" -}}
{{- end -}}
{{- if and (eq .Values.persistence.type "postgresql") (not .Values.persistence.postgresql.url.secretName) -}}
{{- fail "persistence.postgresql.url.secretName: missing: takes the name of the Secret that holds the store's URL" -}}
{{- end -}}
{{- if eq .Values.mode "standalone" -}}
{{- $grace := .Values.terminationGracePeriodSeconds -}}
{{- if and (not (kindIs "invalid" $grace)) (lt (int $grace) (add 5 (int .Values.preStopSleepSeconds))) -}}
{{- fail (printf "terminationGracePeriodSeconds: too short: takes at least %d, five more than preStopSleepSeconds" (add 5 (int .Values.preStopSleepSeconds))) -}}
{{- end -}}
{{- if and .Values.networkPolicy.enabled (not (or .Values.networkPolicy.databasePorts .Values.networkPolicy.extraEgress)) -}}
{{- if eq .Values.persistence.type "postgresql" -}}
{{- fail "networkPolicy.databasePorts: missing: takes the port of the store, whose URL is in a Secret" -}}
{{- end -}}
{{- range $name, $given := .Values.credentials -}}
{{- if $given.url -}}
{{- fail (printf "networkPolicy.databasePorts: missing: takes the port of target %s, whose URL is in a Secret" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (gt (int .Values.standalone.replicas) 1) (eq .Values.persistence.type "pvc") -}}
{{- fail "standalone.replicas: a claim serves one pod at a time: takes 1, or persistence.type postgresql, which all pods share" -}}
{{- end -}}
{{- if and .Values.podDisruptionBudget.enabled (not (kindIs "invalid" .Values.standalone.replicas)) (le (int .Values.standalone.replicas) (int .Values.podDisruptionBudget.minAvailable)) -}}
{{- fail "podDisruptionBudget: would block the draining of nodes: takes standalone.replicas above minAvailable" -}}
{{- end -}}
{{- else -}}
{{- range list "serviceMonitor" "networkPolicy" "podDisruptionBudget" -}}
{{- if (get $.Values .).enabled -}}
{{- fail (printf "%s.enabled: concerns pods and Services that this chart makes under mode standalone only: write your own for the pods of your application, or take podMonitor" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (eq .Values.mode "job") (gt (include "connection-health-sidecar.internal.jobTimeout" . | int64) 2592000) -}}
{{- fail "job.timeout: too long: takes at most 30d" -}}
{{- end -}}
{{- if and (eq .Values.mode "job") (not .Values.job.target) (gt (len .Values.config.targets) 1) (not (hasKey .Values.config.targets "default")) -}}
{{- fail (printf "job.target: missing: takes one of %s" (keys .Values.config.targets | sortAlpha | join ", ")) -}}
{{- end -}}
{{- end -}}
