{{/* Parts of pods: what a security policy asks for, the container, its volumes. */}}

{{- define "untorn.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "untorn.containerSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/*
The container: (dict "root" . "name" "untorn" "command" "run" "part" .Values.applier "ready" true "startup" true).
Probes ask the metrics listener, because it listens beyond loopback, where the kubelet comes from.
*/}}
{{- define "untorn.container" -}}
{{- $port := .root.Values.metrics.port -}}
name: {{ .name }}
image: {{ include "untorn.image" .root | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
args: [{{ .command }}, --config, /etc/untorn/untorn.toml]
{{- $admin := dict "secretName" "" }}
{{- if eq .command "run" }}{{- $admin = .root.Values.tls.admin }}{{- end }}
{{- if or .env $admin.secretName }}
env:
  {{- with .env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- if $admin.secretName }}
  # For commands inside the container.
  - { name: UNTORN_ADMIN, value: "https://127.0.0.1:7100" }
  - { name: UNTORN_TLS_CA, value: /etc/untorn/admin-tls/ca.crt }
  - { name: UNTORN_TLS_CERT, value: /etc/untorn/admin-tls/tls.crt }
  - { name: UNTORN_TLS_KEY, value: /etc/untorn/admin-tls/tls.key }
  - { name: UNTORN_TLS_SERVER_NAME, value: {{ $admin.serverName | quote }} }
  {{- end }}
{{- end }}
ports:
  - name: metrics
    containerPort: {{ $port }}
  {{- if eq .command "tablet" }}
  - name: grpc
    containerPort: 7300
  {{- end }}
  {{- if $admin.secretName }}
  - name: admin
    containerPort: 7100
  {{- end }}
{{- if .startup }}
startupProbe:
  httpGet: { path: /livez, port: metrics }
  periodSeconds: 5
  failureThreshold: {{ max 1 (div (int .root.Values.probes.startupSeconds) 5) }}
{{- end }}
livenessProbe:
  httpGet: { path: /livez, port: metrics }
  periodSeconds: 10
  timeoutSeconds: 5
  {{- if .startup }}
  failureThreshold: 6
  {{- else }}
  # There is no startup probe: while one is not over, the whole pod is not ready.
  failureThreshold: {{ max 6 (div (int .root.Values.probes.startupSeconds) 10) }}
  {{- end }}
{{- if .ready }}
readinessProbe:
  httpGet: { path: {{ .ready }}, port: metrics }
  periodSeconds: 5
  timeoutSeconds: 5
{{- end }}
resources:
  {{- toYaml .part.resources | nindent 2 }}
securityContext:
  {{- include "untorn.containerSecurity" .root | nindent 2 }}
volumeMounts:
  - name: {{ .prefix }}config
    mountPath: /etc/untorn/untorn.toml
    subPath: {{ if eq .command "tablet" }}tablet.toml{{ else }}untorn.toml{{ end }}
    readOnly: true
  - name: {{ .prefix }}data
    mountPath: /var/lib/untorn
  {{- if include "untorn.tls.secret" . }}
  - name: {{ .prefix }}tls
    mountPath: /etc/untorn/tls
    readOnly: true
  {{- end }}
  {{- if $admin.secretName }}
  - name: {{ .prefix }}admin-tls
    mountPath: /etc/untorn/admin-tls
    readOnly: true
  {{- end }}
  {{- if eq .command "run" }}
  {{- range $number, $tablet := .root.Values.config.source.tablets }}
  {{- if or .passwordSecret .caSecret .certSecret .tlsSecret }}
  - name: {{ $.prefix }}secret-{{ $number }}
    mountPath: /etc/untorn/secrets/{{ .name }}
    readOnly: true
  {{- end }}
  {{- end }}
  {{- range (.root.Values.config.replica).tablets }}
  {{- if or .passwordSecret .caSecret .certSecret }}
  - name: {{ $.prefix }}replica
    mountPath: /etc/untorn/replica
    readOnly: true
  {{- end }}
  {{- end }}
  {{- end }}
{{- end -}}

{{/* Volumes but the data: (dict "root" . "prefix" "" "command" "run"). Secrets are mounted, never copied. */}}
{{- define "untorn.volumes" -}}
- name: {{ .prefix }}config
  configMap:
    name: {{ include "untorn.fullname" .root }}
{{- with include "untorn.tls.secret" . }}
- name: {{ $.prefix }}tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- if eq .command "run" }}
{{- with .root.Values.tls.admin.secretName }}
- name: {{ $.prefix }}admin-tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- range $number, $tablet := .root.Values.config.source.tablets }}
{{- if or .passwordSecret .caSecret .certSecret .tlsSecret }}
- name: {{ $.prefix }}secret-{{ $number }}
  {{- include "untorn.secrets.volume" . | nindent 2 }}
{{- end }}
{{- end }}
{{- range (.root.Values.config.replica).tablets }}
{{- if or .passwordSecret .caSecret .certSecret }}
- name: {{ $.prefix }}replica
  {{- include "untorn.secrets.volume" . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The Secrets that an entry of tablets names, as files. */}}
{{- define "untorn.secrets.volume" -}}
projected:
  defaultMode: 0440
  sources:
    {{- with .passwordSecret }}
    - secret:
        name: {{ .name }}
        items:
          - { key: {{ .key }}, path: password }
    {{- end }}
    {{- with .caSecret }}
    - secret:
        name: {{ .name }}
        items:
          - { key: {{ .key }}, path: ca.crt }
    {{- end }}
    {{- with .certSecret }}
    - secret:
        name: {{ .name }}
        items:
          - { key: tls.crt, path: tls.crt }
          - { key: tls.key, path: tls.key }
    {{- end }}
    {{- with .tlsSecret }}
    - secret:
        name: {{ .name }}
        items:
          - { key: tls.crt, path: tls.crt }
          - { key: tls.key, path: tls.key }
          - { key: ca.crt, path: ca.crt }
    {{- end }}
{{- end -}}

{{/* The claim of the data: (dict "name" "data" "part" .Values.applier). */}}
{{- define "untorn.claim" -}}
metadata:
  name: {{ .name }}
spec:
  accessModes: [ReadWriteOnce]
  {{- with .part.persistence.storageClass }}
  storageClassName: {{ . }}
  {{- end }}
  resources:
    requests:
      storage: {{ .part.persistence.size }}
{{- end -}}

{{/* A pod's template but its metadata's labels: (dict "root" . "part" … "container" …). */}}
{{- define "untorn.podSpec" -}}
automountServiceAccountToken: false
# Services are found by name; their variables would only look like configuration.
enableServiceLinks: false
terminationGracePeriodSeconds: {{ .part.terminationGracePeriodSeconds }}
securityContext:
  {{- include "untorn.podSecurity" .root | nindent 2 }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .part.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" }}
{{- with index $.part $key }}
{{ $key }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
containers:
  - {{- include "untorn.container" . | nindent 4 }}
volumes:
  {{- include "untorn.volumes" (dict "root" .root "prefix" "" "command" .command) | nindent 2 }}
{{- end -}}
