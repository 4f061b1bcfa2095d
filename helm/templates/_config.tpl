{{/* untorn's configuration, from the values and what the chart itself decides. */}}

{{- define "untorn.applier.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $_ := set $config "data_dir" "/var/lib/untorn/data" -}}
{{- $_ := set $config "admin" (dict "listen" "127.0.0.1:7100") -}}
{{- with .Values.tls.admin -}}
{{- if .secretName -}}
{{- $tls := include "untorn.tls.listener" "/etc/untorn/admin-tls" | fromYaml -}}
{{- $access := prepend .access (dict "identity" .serverName "role" "viewer") -}}
{{- $_ := set $config "admin" (dict "listen" "0.0.0.0:7100" "tls" $tls "access" $access) -}}
{{- end -}}
{{- end -}}
{{- include "untorn.metrics.config" (dict "root" . "config" $config) -}}
{{- range $config.source.tablets -}}
{{- include "untorn.secrets.config" (dict "tablet" . "folder" (printf "/etc/untorn/secrets/%s" .name)) -}}
{{- end -}}
{{- range ($config.replica).tablets -}}
{{- include "untorn.secrets.config" (dict "tablet" . "folder" "/etc/untorn/replica") -}}
{{- end -}}
{{- if not $config.source -}}{{- $_ := unset $config "source" -}}{{- end -}}
{{- if eq .Values.shape "tablets" -}}
{{- $tablets := list -}}
{{- $name := include "untorn.fullname" . -}}
{{- range $i := until (int .Values.tabletServers.replicas) -}}
{{- $pod := printf "%s-tablet-%d" $name $i -}}
{{- $host := printf "%s.%s-tablet:7300" $pod $name -}}
{{- if $.Values.tabletServers.insecure -}}
{{- $tablets = append $tablets (dict "name" $pod "url" (printf "http://%s" $host) "insecure" true) -}}
{{- else -}}
{{- $tls := include "untorn.tls.connection" "/etc/untorn/tls" | fromYaml -}}
{{- with $.Values.tls.tablets.serverName -}}{{- $_ := set $tls "server_name" . -}}{{- end -}}
{{- $tablets = append $tablets (dict "name" $pod "url" (printf "https://%s" $host) "tls" $tls) -}}
{{- end -}}
{{- end -}}
{{- $_ := set $config.replica "kind" "grpc" -}}
{{- $_ := set $config.replica "tablets" $tablets -}}
{{- end -}}
{{- include "untorn.toml" (dict "map" $config "path" "") | trim -}}
{{- end -}}

{{/* In place of the Secrets that an entry names, the files that they are mounted as: (dict "tablet" . "folder" "/etc/…"). */}}
{{- define "untorn.secrets.config" -}}
{{- $tablet := .tablet -}}
{{- $folder := .folder -}}
{{- with $tablet.passwordSecret -}}
{{- $_ := set $tablet "password_file" (printf "%s/password" $folder) -}}
{{- end -}}
{{- with $tablet.caSecret -}}
{{- $joint := ternary "&" "?" (contains "?" $tablet.url) -}}
{{- $_ := set $tablet "url" (printf "%s%ssslrootcert=%s/ca.crt" $tablet.url $joint $folder) -}}
{{- end -}}
{{- with $tablet.certSecret -}}
{{- $joint := ternary "&" "?" (contains "?" $tablet.url) -}}
{{- $_ := set $tablet "url" (printf "%s%ssslcert=%s/tls.crt&sslkey=%s/tls.key" $tablet.url $joint $folder $folder) -}}
{{- end -}}
{{- with $tablet.tlsSecret -}}
{{- $tls := include "untorn.tls.connection" $folder | fromYaml -}}
{{- with .serverName -}}{{- $_ := set $tls "server_name" . -}}{{- end -}}
{{- $_ := set $tablet "tls" $tls -}}
{{- end -}}
{{- range list "tlsSecret" "passwordSecret" "caSecret" "certSecret" -}}
{{- $_ := unset $tablet . -}}
{{- end -}}
{{- end -}}

{{- define "untorn.tablet.config" -}}
{{- $config := dict "data_dir" "/var/lib/untorn/data" "memory_budget" .Values.tabletServers.memory_budget -}}
{{- $tablet := dict "listen" "0.0.0.0:7300" "wal_retention" .Values.tabletServers.wal_retention -}}
{{- if .Values.tabletServers.insecure -}}
{{- $_ := set $tablet "insecure" true -}}
{{- else -}}
{{- $_ := set $tablet "tls" (include "untorn.tls.listener" "/etc/untorn/tls" | fromYaml) -}}
{{- $_ := set $tablet "access" (list (dict "identity" .Values.tls.applier.identity "role" "admin")) -}}
{{- end -}}
{{- $_ := set $config "tablet" $tablet -}}
{{- $_ := set $config "tracing" .Values.config.tracing -}}
{{- include "untorn.metrics.config" (dict "root" . "config" $config) -}}
{{- include "untorn.toml" (dict "map" $config "path" "") | trim -}}
{{- end -}}

{{/* Prometheus and the kubelet's probes come from beyond loopback. What is served there holds no rows. */}}
{{- define "untorn.metrics.config" -}}
{{- $listen := printf "0.0.0.0:%d" (int .root.Values.metrics.port) -}}
{{- $_ := set .config "metrics" (dict "listen" $listen "insecure" true) -}}
{{- end -}}

{{/* The files of a Secret of type kubernetes.io/tls that is mounted here. */}}
{{- define "untorn.tls.listener" -}}
cert: {{ . }}/tls.crt
key: {{ . }}/tls.key
client_ca: {{ . }}/ca.crt
{{- end -}}

{{- define "untorn.tls.connection" -}}
cert: {{ . }}/tls.crt
key: {{ . }}/tls.key
ca: {{ . }}/ca.crt
{{- end -}}

{{/* The Secret of what a container shows for gRPC to or from tablets: (dict "root" . "command" "run"); else nothing. */}}
{{- define "untorn.tls.secret" -}}
{{- $values := .root.Values -}}
{{- if and (eq $values.shape "tablets") (not $values.tabletServers.insecure) -}}
{{- ternary $values.tls.tablets.secretName $values.tls.applier.secretName (eq .command "tablet") -}}
{{- end -}}
{{- end -}}
