{{/*
A map as TOML, for untorn's configuration: (dict "map" $map "path" "").
Plain keys first, then tables, then arrays of tables, as TOML wants them. Helm's own toToml writes 3 as 3.0, which untorn
refuses. JSON's strings are TOML's.
*/}}
{{- define "untorn.toml" -}}
{{- $path := .path -}}
{{- range $key, $value := .map }}
{{- if not (or (kindIs "map" $value) (and (kindIs "slice" $value) (not (empty $value)) (kindIs "map" (first $value)))) }}
{{ $key }} = {{ if kindIs "float64" $value }}{{ $value | int64 }}{{ else }}{{ $value | toJson }}{{ end }}
{{- end }}
{{- end }}
{{- range $key, $value := .map }}
{{- $at := ternary $key (printf "%s.%s" $path $key) (eq $path "") }}
{{- if kindIs "map" $value }}

[{{ $at }}]
{{- include "untorn.toml" (dict "map" $value "path" $at) }}
{{- else if and (kindIs "slice" $value) (not (empty $value)) (kindIs "map" (first $value)) }}
{{- range $value }}

[[{{ $at }}]]
{{- include "untorn.toml" (dict "map" . "path" $at) }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}
