{{/*
The library of the shape `sidecar`: another chart lists untorn as its dependency and includes these into its own pods,
each with `.Subcharts.untorn`. examples/replica-with-sidecar shows all of them at their places.
*/}}

{{/* An entry of the pod's containers. */}}
{{- define "untorn.sidecar.container" -}}
{{- if ne .Values.shape "sidecar" -}}
{{- fail "untorn: set untorn.shape to sidecar, or untorn runs twice: in this pod and in pods of its own" -}}
{{- end -}}
- {{- include "untorn.container" (dict "root" . "name" "untorn" "command" "run" "part" .Values.applier
      "env" .Values.applier.env "prefix" "untorn-") | nindent 2 }}
{{- end -}}

{{/* Entries of the pod's volumes. */}}
{{- define "untorn.sidecar.volumes" -}}
{{- include "untorn.volumes" (dict "root" . "prefix" "untorn-" "command" "run") }}
{{- end -}}

{{/* An entry of the StatefulSet's volumeClaimTemplates. */}}
{{- define "untorn.sidecar.volumeClaimTemplate" -}}
- {{- include "untorn.claim" (dict "name" "untorn-data" "part" .Values.applier) | nindent 2 }}
{{- end -}}

{{/* Labels of the pod: the PodMonitor goes by them. */}}
{{- define "untorn.sidecar.labels" -}}
untorn/sidecar: {{ include "untorn.fullname" . }}
{{- end -}}

{{/* Annotations of the pod: another configuration makes other pods. */}}
{{- define "untorn.sidecar.annotations" -}}
untorn/config: {{ include "untorn.applier.config" . | sha256sum }}
{{- end -}}
