{{/* Values that are right one by one and wrong together. The schema has said the rest. */}}
{{- define "opensandbox.checks" -}}
{{- if regexMatch "^[0-9]" (include "opensandbox.fullname" .) -}}
{{- fail (printf "fullnameOverride: is empty, and the name of the release, %s, begins with a digit, which that of a Service may not; set fullnameOverride, or choose another name" .Release.Name) -}}
{{- end -}}
{{- with .Values.controller -}}
{{- if and (not .leaderElection.enabled) (gt (int .replicaCount) 1) -}}
{{- fail (printf "controller.replicaCount: is %d, but without an election (controller.leaderElection.enabled: false) there can be one replica only; set it to 1" (int .replicaCount)) -}}
{{- end -}}
{{- end -}}
{{- with .Values.certificates -}}
{{- if eq .mode "existing-secret" -}}
{{- if not .existingSecret.name -}}
{{- fail "certificates.existingSecret.name: is empty, but certificates.mode is existing-secret; name a Secret with tls.crt and tls.key" -}}
{{- end -}}
{{- if not (or .existingSecret.caBundle $.Values.webhook.configurationAnnotations) -}}
{{- fail "certificates.existingSecret.caBundle: is empty, so the API server would trust no certificate; give the PEM of the authority (--set-file certificates.existingSecret.caBundle=ca.crt), or webhook.configurationAnnotations for what fills it in" -}}
{{- end -}}
{{- else if .existingSecret.name -}}
{{- fail (printf "certificates.existingSecret.name: is %s, but certificates.mode is %s; set that to existing-secret, or leave the name empty" .existingSecret.name .mode) -}}
{{- end -}}
{{- if and .certManager.issuerRef (ne .mode "cert-manager") -}}
{{- fail (printf "certificates.certManager.issuerRef: is set, but certificates.mode is %s; set that to cert-manager, or leave issuerRef empty" .mode) -}}
{{- end -}}
{{- end -}}
{{- range $path, $account := dict "serviceAccount" .Values.serviceAccount "webhook.serviceAccount" .Values.webhook.serviceAccount -}}
{{- if not (or $account.create $account.name) -}}
{{- fail (printf "%s.name: is empty, but %s.create is false; name an account that exists" $path $path) -}}
{{- end -}}
{{- end -}}
{{- if eq (include "opensandbox.operatorAccount" .) (include "opensandbox.webhookAccount" .) -}}
{{- fail (printf "webhook.serviceAccount.name: is that of the operator, %s; each program has an account of its own, so that neither has the rights of both" (include "opensandbox.webhookAccount" .)) -}}
{{- end -}}
{{- end -}}
