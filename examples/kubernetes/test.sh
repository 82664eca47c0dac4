#!/usr/bin/env bash
# Tries Carina in a cluster with the examples beside this file; `test.sh help` tells how.
set -euo pipefail
cd "$(dirname "$0")"
namespace=carina

help() {
  cat <<'END'
usage: test.sh [VERB]
  (none)     install all examples
  uninstall  remove them, with the namespace carina and what its volumes hold
  expand     make every claim of the namespace 1Gi larger
  scale      give every StatefulSet one replica more; `scale N` gives it N
  delete     delete all pods: those of Deployments and StatefulSets come back with the data they had,
             carina-block-pod and carina-ephemeral come back by test.sh
  exec       show the filesystems that the pods have
  help       this
KUBECONFIG names the cluster. The namespace carina is for the examples alone.
END
}

install() {
  kubectl apply -f namespace.yaml
  kubectl apply -f .
}

uninstall() {
  kubectl delete --ignore-not-found -f namespace.yaml
  for class in storageclass*.yaml; do
    kubectl delete --ignore-not-found -f "$class"
  done
}

expand() {
  local claim size
  kubectl -n "$namespace" get pvc --no-headers -o custom-columns=NAME:.metadata.name,SIZE:.spec.resources.requests.storage |
    while read -r claim size; do
      if [[ ! $size =~ ^[0-9]+Gi$ ]]; then
        echo "$claim has $size, which is no whole number of Gi: left as it is"
        continue
      fi
      # One that its class doesn't let grow is named by the API server, and the rest goes on.
      kubectl -n "$namespace" patch pvc "$claim" \
        -p "{\"spec\":{\"resources\":{\"requests\":{\"storage\":\"$((${size%Gi} + 1))Gi\"}}}}" || true
    done
}

scale() {
  local set replicas
  kubectl -n "$namespace" get statefulset --no-headers -o custom-columns=NAME:.metadata.name,REPLICAS:.spec.replicas |
    while read -r set replicas; do
      kubectl -n "$namespace" scale statefulset "$set" --replicas="${1:-$((replicas + 1))}"
    done
}

show() {
  local pod
  for pod in $(kubectl -n "$namespace" get pods --field-selector=status.phase=Running -o name); do
    echo "$pod"
    kubectl -n "$namespace" exec "$pod" -- df -h || true
  done
}

case "${1:-install}" in
  install) install ;;
  uninstall) uninstall ;;
  expand) expand ;;
  scale) scale "${2:-}" ;;
  delete) kubectl -n "$namespace" delete pods --all ;;
  exec) show ;;
  help | -h | --help) help ;;
  *)
    help >&2
    exit 2
    ;;
esac
