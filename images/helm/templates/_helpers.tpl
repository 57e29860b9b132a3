{{- define "ringway.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "ringway.labels" -}}
{{ include "ringway.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "ringway.hostNetwork" -}}
{{- if kindIs "bool" .Values.hostNetwork }}{{ .Values.hostNetwork }}{{ else }}{{ eq .Values.kind "DaemonSet" }}{{ end }}
{{- end }}

{{- define "ringway.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* The table `admin` is the last of the file. */}}
{{- define "ringway.config" -}}
{{- if .Values.config }}{{ .Values.config }}{{ else }}{{ index (.Files.Get "files/configmap.yaml" | fromYaml).data "ringway.toml" }}
{{- if .Values.adminSocket.create }}
socket = "/run/ringway/admin.sock"
{{- end }}
{{- end }}
{{- end }}

{{/* The rules of a kind of role, from the same file that kustomize has. */}}
{{- define "ringway.rules" -}}
{{- range splitList "\n---\n" (.root.Files.Get "files/rbac.yaml") }}
{{- $object := fromYaml . }}
{{- if eq $object.kind $.kind }}
{{- toYaml $object.rules }}
{{- end }}
{{- end }}
{{- end }}

{{- define "ringway.args" -}}
- run
- --kubernetes
- --config=/etc/ringway/ringway.toml
{{- range .Values.addressPool }}
- {{ printf "--address-pool=%s" . | quote }}
{{- end }}
{{- range .Values.nodeAddresses }}
- {{ printf "--node-address=%s" . | quote }}
{{- end }}
{{- range .Values.namespaces }}
- {{ printf "--namespace=%s" . | quote }}
{{- end }}
{{- if .Values.externalNames }}
- --external-names
{{- end }}
{{- with .Values.controllerName }}
- {{ printf "--controller-name=%s" . | quote }}
{{- end }}
{{- range .Values.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}

{{/* Combinations that would be applied and not work. */}}
{{- define "ringway.check" -}}
{{- $host := eq (include "ringway.hostNetwork" .) "true" }}
{{- if and .Values.networkPolicy.create $host }}
{{- fail "networkPolicy.create: Kubernetes applies no NetworkPolicy to pods with hostNetwork" }}
{{- end }}
{{- if eq .Values.kind "DaemonSet" }}
{{- if .Values.autoscaling.create }}
{{- fail "autoscaling.create: a DaemonSet has as many pods as there are nodes; set kind: Deployment" }}
{{- end }}
{{- if .Values.service.create }}
{{- fail "service.create: clients reach the nodes of a DaemonSet; set kind: Deployment" }}
{{- end }}
{{- end }}
{{- if and .Values.adminSocket.create .Values.config (not (contains "/run/ringway/admin.sock" .Values.config)) }}
{{- fail "adminSocket.create: write `socket = \"/run/ringway/admin.sock\"` into the table `admin` of `config`" }}
{{- end }}
{{- if and .Values.service.create (not .Values.service.ports) }}
{{- fail "service.ports: name the ports of the Gateways' listeners" }}
{{- end }}
{{- if and .Values.networkPolicy.create (not .Values.service.ports) }}
{{- fail "networkPolicy.create: service.ports says which ports clients may reach" }}
{{- end }}
{{- end }}
