{{/* Names of objects begin with this: the release's name, with the chart's unless it has it already. */}}
{{- define "opensandbox.fullname" -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- /* A release may have dots in its name, a Service may not; -webhook-authority has to fit behind it. */ -}}
{{- .Values.fullnameOverride | default $full | replace "." "-" | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "opensandbox.namespace" -}}
{{- .Values.namespaceOverride | default .Release.Namespace -}}
{{- end -}}

{{/* Behind names of objects of the whole cluster, so that releases of one name in two namespaces do not
     meet. A namespace has no dot in its name, so no two of these are equal. */}}
{{- define "opensandbox.suffix" -}}
{{- $namespace := include "opensandbox.namespace" . -}}
{{- if ne $namespace "opensandbox-system" }}.{{ $namespace }}{{ end -}}
{{- end -}}

{{/* Name of what belongs to the whole cluster. Arguments: the root, operator or webhook. */}}
{{- define "opensandbox.clusterName" -}}
{{- printf "%s-%s%s" (include "opensandbox.fullname" (first .)) (last .) (include "opensandbox.suffix" (first .)) -}}
{{- end -}}

{{/* Labels by which pods are selected. Arguments: the root, operator or webhook. */}}
{{- define "opensandbox.selectorLabels" -}}
app.kubernetes.io/name: {{ printf "%s-%s" ((first .).Values.nameOverride | default (first .).Chart.Name) (last .) }}
app.kubernetes.io/instance: {{ (first .).Release.Name | quote }}
{{- end -}}

{{/* Labels of every object. Arguments: the root; operator, webhook, or empty for what is of both; further
     labels, over which ours win. */}}
{{- define "opensandbox.labels" -}}
{{- $root := index . 0 -}}
{{- $labels := dict
  "app.kubernetes.io/part-of" "opensandbox"
  "app.kubernetes.io/instance" $root.Release.Name
  "app.kubernetes.io/version" $root.Chart.AppVersion
  "app.kubernetes.io/managed-by" $root.Release.Service
  "helm.sh/chart" (printf "%s-%s" $root.Chart.Name ($root.Chart.Version | replace "+" "_")) -}}
{{- with index . 1 -}}
{{- $labels = merge (fromYaml (include "opensandbox.selectorLabels" (list $root .))) $labels -}}
{{- end -}}
{{- toYaml (merge $labels (index . 2) $root.Values.commonLabels) -}}
{{- end -}}

{{/* Labels of pods: without the versions, so that an upgrade which changes nothing else leaves them be.
     Arguments as above. */}}
{{- define "opensandbox.podLabels" -}}
{{- $root := index . 0 -}}
{{- $labels := dict "app.kubernetes.io/part-of" "opensandbox" -}}
{{- $labels = merge (fromYaml (include "opensandbox.selectorLabels" (list $root (index . 1)))) $labels -}}
{{- toYaml (merge $labels (index . 2) $root.Values.commonLabels) -}}
{{- end -}}

{{/* An image. Arguments: the root, the values of it. */}}
{{- define "opensandbox.image" -}}
{{- $image := last . -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default (first .).Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* Name of the account. Arguments: the root, operator or webhook, the values of the account. */}}
{{- define "opensandbox.serviceAccountName" -}}
{{- (index . 2).name | default (printf "%s-%s" (include "opensandbox.fullname" (index . 0)) (index . 1)) -}}
{{- end -}}

{{- define "opensandbox.operatorAccount" -}}
{{- include "opensandbox.serviceAccountName" (list . "operator" .Values.serviceAccount) -}}
{{- end -}}

{{- define "opensandbox.webhookAccount" -}}
{{- include "opensandbox.serviceAccountName" (list . "webhook" .Values.webhook.serviceAccount) -}}
{{- end -}}

{{/* Name of the operator, as the API server knows it. */}}
{{- define "opensandbox.operatorUser" -}}
system:serviceaccount:{{ include "opensandbox.namespace" . }}:{{ include "opensandbox.operatorAccount" . }}
{{- end -}}

{{/* Name of the Secret with the webhook's certificate, where it comes from files; else empty. */}}
{{- define "opensandbox.tlsSecret" -}}
{{- if eq .Values.certificates.mode "cert-manager" -}}
{{ include "opensandbox.fullname" . }}-webhook-tls
{{- else if eq .Values.certificates.mode "existing-secret" -}}
{{ .Values.certificates.existingSecret.name }}
{{- end -}}
{{- end -}}

{{/* Priority, placement and security of a pod. Arguments: the root, operator or webhook, its values. */}}
{{- define "opensandbox.pod" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := index . 2 -}}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
{{- toYaml . | nindent 0 }}
{{- end }}
{{- if $values.priorityClassName }}
priorityClassName: {{ $values.priorityClassName | quote }}
{{- else if $root.Values.priorityClass.create }}
priorityClassName: {{ include "opensandbox.clusterName" (list $root "control-plane") }}
{{- end }}
# On SIGTERM: first no new requests, then what was begun is finished, and slack.
terminationGracePeriodSeconds: 30
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
{{- toYaml . | nindent 0 }}
{{- end }}
{{- if $values.affinity }}
affinity:
  {{- toYaml $values.affinity | nindent 2 }}
{{- else }}
# Spread if possible; on a cluster of one node all replicas still run.
topologySpreadConstraints:
- maxSkew: 1
  topologyKey: kubernetes.io/hostname
  whenUnsatisfiable: ScheduleAnyway
  # Replicas of the same version are spread, whatever an update has still running.
  matchLabelKeys: [pod-template-hash]
  labelSelector:
    matchLabels:
      {{- include "opensandbox.selectorLabels" (list $root $component) | nindent 6 }}
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 100
      podAffinityTerm:
        topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            {{- include "opensandbox.selectorLabels" (list $root $component) | nindent 12 }}
{{- end }}
{{- with $values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Probes, resources and security of a container. Argument: the values of operator or webhook. */}}
{{- define "opensandbox.container" -}}
{{- if .readinessProbe.enabled }}
readinessProbe:
  httpGet:
    path: /readyz
    port: metrics
  {{- toYaml (omit .readinessProbe "enabled") | nindent 2 }}
{{- end }}
{{- if .livenessProbe.enabled }}
livenessProbe:
  httpGet:
    path: /healthz
    port: metrics
  {{- toYaml (omit .livenessProbe "enabled") | nindent 2 }}
{{- end }}
{{- with .resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .containerSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
