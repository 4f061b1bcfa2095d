{{/* untorn's configuration, from the values and what the chart itself decides. */}}

{{- define "untorn.applier.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $_ := set $config "data_dir" "/var/lib/untorn/data" -}}
{{- $_ := set $config "admin" (dict "listen" "127.0.0.1:7100") -}}
{{- include "untorn.metrics.config" (dict "root" . "config" $config) -}}
{{- with $config.source.tablets -}}
{{- range . -}}
{{- $tablet := . -}}
{{- with .passwordSecret -}}
{{- $_ := set $tablet "password_file" (printf "/etc/untorn/secrets/%s/password" $tablet.name) -}}
{{- end -}}
{{- with .caSecret -}}
{{- $joint := ternary "&" "?" (contains "?" $tablet.url) -}}
{{- $_ := set $tablet "url" (printf "%s%ssslrootcert=/etc/untorn/secrets/%s/ca.crt" $tablet.url $joint $tablet.name) -}}
{{- end -}}
{{- $_ := unset $tablet "passwordSecret" -}}
{{- $_ := unset $tablet "caSecret" -}}
{{- end -}}
{{- end -}}
{{- if not $config.source -}}{{- $_ := unset $config "source" -}}{{- end -}}
{{- if eq .Values.shape "tablets" -}}
{{- $tablets := list -}}
{{- $name := include "untorn.fullname" . -}}
{{- range $i := until (int .Values.tabletServers.replicas) -}}
{{- $pod := printf "%s-tablet-%d" $name $i -}}
{{- $tablets = append $tablets (dict "name" $pod "url" (printf "http://%s.%s-tablet:7300" $pod $name) "insecure" true) -}}
{{- end -}}
{{- $_ := set $config.replica "kind" "grpc" -}}
{{- $_ := set $config.replica "tablets" $tablets -}}
{{- end -}}
{{- include "untorn.toml" (dict "map" $config "path" "") | trim -}}
{{- end -}}

{{- define "untorn.tablet.config" -}}
{{- $config := dict "data_dir" "/var/lib/untorn/data" "memory_budget" .Values.tabletServers.memory_budget -}}
{{- $tablet := dict "listen" "0.0.0.0:7300" "insecure" true "wal_retention" .Values.tabletServers.wal_retention -}}
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
