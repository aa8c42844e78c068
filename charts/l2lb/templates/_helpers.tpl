{{- /* Labels of every object; call with (dict "root" $ "component" "speaker"). */ -}}
{{- define "l2lb.labels" -}}
{{ include "l2lb.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "l2lb.selector" -}}
app.kubernetes.io/name: l2lb
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{- define "l2lb.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- /* The environment that both roles share; flags given by environment are listed by --help. */ -}}
{{- define "l2lb.env" -}}
- name: L2LB_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: L2LB_LOG
  value: {{ .Values.log.filter | quote }}
- name: L2LB_LOG_FORMAT
  value: {{ .Values.log.format }}
{{- end -}}

{{- define "l2lb.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}
