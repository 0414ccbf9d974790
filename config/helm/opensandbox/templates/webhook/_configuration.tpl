{{/* Annotations of a webhook configuration, indented, or nothing. */}}
{{- define "opensandbox.configurationAnnotations" -}}
{{- $annotations := .Values.webhook.configurationAnnotations -}}
{{- if eq .Values.certificates.mode "cert-manager" -}}
{{- $certificate := printf "%s/%s-webhook" (include "opensandbox.namespace" .) (include "opensandbox.fullname" .) -}}
{{- $annotations = merge (dict "cert-manager.io/inject-ca-from" $certificate) $annotations -}}
{{- end -}}
{{- with $annotations -}}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What all webhooks have in common. Arguments: the root, what is asked, the kind, the policy. */}}
{{- define "opensandbox.webhook" -}}
{{- $root := index . 0 -}}
clientConfig:
  service:
    name: {{ include "opensandbox.fullname" $root }}-webhook
    namespace: {{ include "opensandbox.namespace" $root | quote }}
    path: /{{ index . 1 }}-sandbox-opensandbox-io-v1alpha1-{{ index . 2 }}
    port: 443
  {{- with $root.Values.certificates.existingSecret.caBundle }}
  caBundle: {{ b64enc . }}
  {{- end }}
admissionReviewVersions: [v1]
sideEffects: None
timeoutSeconds: {{ int $root.Values.webhook.timeoutSeconds }}
failurePolicy: {{ index . 3 }}
matchPolicy: Equivalent
rules:
- apiGroups: [sandbox.opensandbox.io]
  apiVersions: [v1alpha1]
  resources: [{{ ternary "pools" "batchsandboxes" (eq (index . 2) "pool") }}]
  operations: [CREATE, UPDATE]
  scope: Namespaced
{{- end -}}

{{/* Of the namespaces, those that are looked after; nothing where it is all of them. */}}
{{- define "opensandbox.watched" -}}
{{- with .Values.watchNamespaces -}}
# Those that the operator looks after; a second release in the cluster has others.
- key: kubernetes.io/metadata.name
  operator: In
  values:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
