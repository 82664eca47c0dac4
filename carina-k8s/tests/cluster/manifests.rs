//! The manifests and examples: readable, and true to the programs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use carina_core::ClassParameters;
use carina_core::config::Config;
use carina_csi::{DRIVER_NAME, TOPOLOGY_KEY};
use carina_k8s::options::{ControllerOptions, NodeOptions, SchedulerOptions};
use clap::Parser;
use serde_json::Value;

/// Every object in the YAML files of a folder.
pub fn objects(folder: &str) -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
    let mut objects = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let text = std::fs::read_to_string(&path).unwrap();
            let all: Vec<Value> =
                serde_saphyr::from_multiple(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert!(!all.is_empty(), "{}", path.display());
            objects.extend(all);
        }
    }
    objects
}

fn object(kind: &str, name: &str) -> Value {
    let found = objects("deploy/kubernetes").into_iter().find(|o| o["kind"] == kind && o["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(|item| item.as_str().unwrap().to_owned()).collect()
}

fn container<'a>(workload: &'a Value, name: &str) -> &'a Value {
    let containers = workload["spec"]["template"]["spec"]["containers"].as_array().unwrap();
    containers.iter().find(|container| container["name"] == name).unwrap()
}

/// Whether a binding is to a role that every cluster has.
fn is_the_clusters(binding: &Value) -> bool {
    let name = binding["roleRef"]["name"].as_str().unwrap();
    name.starts_with("system:") || name == "extension-apiserver-authentication-reader"
}

/// What a service account may do, by the roles that are bound to it.
pub fn allowed(account: &str) -> BTreeSet<(String, String, String)> {
    let all = objects("deploy/kubernetes");
    let bound = all.iter().filter(|object| {
        object["kind"].as_str().unwrap().ends_with("RoleBinding")
            && object["subjects"]
                .as_array()
                .unwrap()
                .iter()
                .any(|s| s["name"] == account && s["namespace"] == "kube-system")
    });
    let mut allowed = BTreeSet::new();
    for binding in bound.filter(|binding| binding["roleRef"]["name"] != "carina-sidecars" && !is_the_clusters(binding))
    {
        let role = object(binding["roleRef"]["kind"].as_str().unwrap(), binding["roleRef"]["name"].as_str().unwrap());
        for rule in role["rules"].as_array().unwrap() {
            for group in strings(&rule["apiGroups"]) {
                for resource in strings(&rule["resources"]) {
                    let one = |verb| (verb, group.clone(), resource.clone());
                    allowed.extend(strings(&rule["verbs"]).into_iter().map(one));
                }
            }
        }
    }
    allowed
}

#[test]
fn what_the_workloads_name_is_there() {
    let all = objects("deploy/kubernetes");
    let names: BTreeSet<(String, String)> = all
        .iter()
        .map(|o| (o["kind"].as_str().unwrap().to_owned(), o["metadata"]["name"].as_str().unwrap().to_owned()))
        .collect();
    let has =
        |kind: &str, name: &Value| names.contains(&(kind.to_owned(), name.as_str().unwrap_or_default().to_owned()));
    for (kind, name) in
        [("Deployment", "csi-carina-provisioner"), ("DaemonSet", "csi-carina-node"), ("Deployment", "carina-scheduler")]
    {
        let workload = object(kind, name);
        let pod = &workload["spec"]["template"]["spec"];
        assert_eq!(workload["metadata"]["namespace"], "kube-system");
        assert_eq!(workload["spec"]["selector"]["matchLabels"], workload["spec"]["template"]["metadata"]["labels"]);
        assert!(has("ServiceAccount", &pod["serviceAccountName"]));
        let volumes: BTreeSet<&str> =
            pod["volumes"].as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect();
        for volume in pod["volumes"].as_array().unwrap().iter().filter(|v| !v["configMap"].is_null()) {
            assert!(has("ConfigMap", &volume["configMap"]["name"]));
        }
        for container in pod["containers"].as_array().unwrap() {
            for mount in container["volumeMounts"].as_array().unwrap() {
                assert!(volumes.contains(mount["name"].as_str().unwrap()), "{mount}");
            }
        }
    }
    for name in ["carina-controller", "csi-carina-node", "carina-scheduler"] {
        let service = object("Service", name);
        let selected = all.iter().filter(|o| !o["spec"]["template"].is_null());
        let mut selected =
            selected.filter(|o| o["spec"]["template"]["metadata"]["labels"] == service["spec"]["selector"]);
        let ports = selected.next().unwrap()["spec"]["template"]["spec"]["containers"][0]["ports"].clone();
        for port in service["spec"]["ports"].as_array().unwrap() {
            let target = ports.as_array().unwrap().iter().find(|p| p["name"] == port["targetPort"]).unwrap();
            // What the API server calls is where it expects HTTPS; a container without root listens higher.
            let there = if port["port"] == 443 { 8443.into() } else { port["port"].clone() };
            assert_eq!(target["containerPort"], there);
        }
    }
    for object in all.iter().filter(|o| o["kind"].as_str().unwrap().ends_with("RoleBinding")) {
        let role = (object["roleRef"]["kind"].as_str().unwrap(), object["roleRef"]["name"].as_str().unwrap());
        assert!(is_the_clusters(object) || names.contains(&(role.0.to_owned(), role.1.to_owned())));
        assert!(has("ServiceAccount", &object["subjects"][0]["name"]));
    }
}

#[test]
fn the_programs_take_the_flags_that_the_workloads_give_them() {
    let node = object("DaemonSet", "csi-carina-node");
    let agent = container(&node, "csi-carina-node");
    assert_eq!(strings(&agent["command"]), ["/usr/local/bin/carina-node"]);
    let given = std::iter::once("carina-node".to_owned()).chain(strings(&agent["args"]));
    let given = given.chain(["--node-name=n1".to_owned()]);
    let options = NodeOptions::try_parse_from(given).unwrap();
    assert_eq!((options.metrics_addr.0.port(), options.http_addr.0.port()), (8080, 8089));
    assert_eq!(agent["env"][0]["name"], "NODE_NAME");
    assert_eq!(agent["env"][0]["valueFrom"]["fieldRef"]["fieldPath"], "spec.nodeName");

    let deployment = object("Deployment", "csi-carina-provisioner");
    let controller = container(&deployment, "carina-controller");
    assert_eq!(strings(&controller["command"]), ["/usr/local/bin/carina-controller"]);
    let given = std::iter::once("carina-controller".to_owned()).chain(strings(&controller["args"]));
    let options = ControllerOptions::try_parse_from(given).unwrap();
    assert_eq!((options.metrics_addr.0.port(), options.http_addr.0.port()), (8080, 8089));
    let deployment = object("Deployment", "carina-scheduler");
    let extender = container(&deployment, "carina-scheduler");
    assert_eq!(strings(&extender["command"]), ["/usr/local/bin/carina-scheduler"]);
    let given = std::iter::once("carina-scheduler".to_owned()).chain(strings(&extender["args"]));
    let options = SchedulerOptions::try_parse_from(given).unwrap();
    assert_eq!((options.extender_addr.0.port(), options.http_addr.0.port()), (8880, 8089));
    for container in [agent, controller, extender] {
        assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/healthz");
        assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/readyz");
    }
}

#[test]
fn the_second_scheduler_asks_our_extender_about_every_node() {
    let deployment = object("Deployment", "carina-scheduler");
    let template = &deployment["spec"]["template"];
    assert_eq!(template["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"], "carina-scheduler");
    assert_eq!(template["spec"]["containers"][0]["name"], "carina-scheduler", "for kubectls that know no annotation");
    // A replica that waits is never ready: an update must get along without it.
    assert_eq!(deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"], deployment["spec"]["replicas"]);
    let scheduler = container(&deployment, "kube-scheduler");
    let mount = &scheduler["volumeMounts"][0];
    let map = object("ConfigMap", "carina-scheduler-config");
    let (file, text) = map["data"].as_object().unwrap().iter().next().unwrap();
    let named = format!("--config={}/{file}", mount["mountPath"].as_str().unwrap());
    assert!(strings(&scheduler["args"]).contains(&named));
    let shipped: Value = serde_saphyr::from_str(text.as_str().unwrap()).unwrap();
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/scheduling.md")).unwrap();
    let snippet = page.split("```yaml").nth(1).unwrap().split("```").next().unwrap();
    let snippet: Value = serde_saphyr::from_str(snippet).unwrap();
    for (config, ignorable) in [(&shipped, false), (&snippet, true)] {
        assert_eq!(
            (&config["apiVersion"], &config["kind"]),
            (&"kubescheduler.config.k8s.io/v1".into(), &"KubeSchedulerConfiguration".into())
        );
        let extender = &config["extenders"][0];
        for verb in ["filter", "prioritize", "preempt"] {
            assert_eq!(extender[format!("{verb}Verb")], verb);
        }
        assert_eq!((&extender["nodeCacheCapable"], &extender["weight"]), (&true.into(), &1.into()));
        assert_eq!(extender["ignorable"], ignorable);
        assert!(extender["urlPrefix"].as_str().unwrap().ends_with(":8880"));
        assert!(extender["managedResources"].is_null(), "claims are no resources of containers");
    }
    assert_eq!(snippet["percentageOfNodesToScore"], 100);
    let profile = &shipped["profiles"][0];
    assert_eq!(
        (&profile["schedulerName"], &profile["percentageOfNodesToScore"]),
        (&"carina-scheduler".into(), &100.into())
    );
    let service = object("Service", "carina-scheduler");
    let host = format!("http://{}.{}.svc:8880", service["metadata"]["name"].as_str().unwrap(), "kube-system");
    assert_eq!(shipped["extenders"][0]["urlPrefix"], host);
    let lease = shipped["leaderElection"]["resourceName"].as_str().unwrap().to_owned();
    let role = object("Role", "carina-scheduler");
    assert!(strings(&role["rules"][1]["resourceNames"]).contains(&lease));
}

#[test]
fn the_sidecars_find_the_sockets_and_wait_longer_than_the_controller() {
    let flags = |container: &Value| -> BTreeMap<String, String> {
        let split =
            |flag: String| flag.trim_start_matches("--").split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
        strings(&container["args"]).into_iter().filter_map(split).collect()
    };
    let deployment = object("Deployment", "csi-carina-provisioner");
    let socket = flags(container(&deployment, "carina-controller"))["csi-address"].clone();
    let waits = ControllerOptions::try_parse_from(["carina-controller"]).unwrap().agent_timeout;
    for name in ["csi-provisioner", "csi-resizer"] {
        let flags = flags(container(&deployment, name));
        assert_eq!(flags["csi-address"], socket);
        assert_eq!(flags["timeout"], "150s");
        assert!(waits < 150);
        assert!(flags["kube-api-qps"].parse::<u32>().unwrap() >= 100, "lifted");
    }
    let provisioner = flags(container(&deployment, "csi-provisioner"));
    assert_eq!(
        (provisioner["strict-topology"].as_str(), provisioner["extra-create-metadata"].as_str()),
        ("true", "true")
    );
    let driver = object("CSIDriver", DRIVER_NAME);
    assert_eq!(driver["spec"]["attachRequired"], false);
    assert_eq!(driver["spec"]["podInfoOnMount"], true);

    let node = object("DaemonSet", "csi-carina-node");
    let agent = flags(container(&node, "csi-carina-node"));
    let volumes = node["spec"]["template"]["spec"]["volumes"].as_array().unwrap();
    let folder = |name: &str| volumes.iter().find(|v| v["name"] == name).unwrap()["hostPath"]["path"].as_str().unwrap();
    assert_eq!(agent["kubelet-registration-path"], format!("{}/csi.sock", folder("plugin")));
    // Kubelet's own folder is where it is on the host, and mounts made in it are seen there.
    let mounts = container(&node, "csi-carina-node")["volumeMounts"].as_array().unwrap();
    let kubelet = mounts.iter().find(|mount| mount["name"] == "kubelet").unwrap();
    assert_eq!(kubelet["mountPath"].as_str().unwrap(), folder("kubelet"));
    assert_eq!(kubelet["mountPropagation"], "Bidirectional");
    for path in ["registration-socket", "device-plugins"] {
        assert!(agent[path].starts_with(folder("kubelet")), "{path}");
    }
}

/// An installation has capacity objects or the extender, and every part of it has the same.
#[test]
fn both_ways_of_scheduling_are_whole() {
    let deployment = object("Deployment", "csi-carina-provisioner");
    let mode = object("ConfigMap", "carina-scheduling");
    let of_map = |container: &str, variable: &str| {
        let variables = self::container(&deployment, container)["env"].as_array().unwrap();
        let from = &variables.iter().find(|v| v["name"] == variable).unwrap()["valueFrom"]["configMapKeyRef"];
        assert_eq!(from["name"], "carina-scheduling");
        from["key"].as_str().unwrap().to_owned()
    };
    let (scheduling, enable) =
        (of_map("carina-controller", "SCHEDULING"), of_map("csi-provisioner", "ENABLE_CAPACITY"));
    let arguments = strings(&container(&deployment, "csi-provisioner")["args"]);
    assert!(arguments.contains(&"--enable-capacity=$(ENABLE_CAPACITY)".to_owned()));
    let driver = object("CSIDriver", DRIVER_NAME);
    let overlay = objects("deploy/kubernetes/capacity");
    let other = |kind: &str| overlay.iter().find(|object| object["kind"] == kind).unwrap();
    for (mode, driver, name, capacity) in
        [(&mode, &driver, "extender", false), (other("ConfigMap"), other("CSIDriver"), "capacity", true)]
    {
        assert_eq!(mode["data"][&scheduling], name);
        assert_eq!(mode["data"][&enable], capacity.to_string());
        assert_eq!(driver["spec"]["storageCapacity"], capacity);
        let given = ["carina-controller", "--scheduling", name];
        assert!(ControllerOptions::try_parse_from(given).is_ok(), "{name}");
    }
    // But for the one field, the driver is the same.
    let mut same = other("CSIDriver").clone();
    same["spec"]["storageCapacity"] = false.into();
    assert_eq!(same, driver);
    assert_eq!(other("ConfigMap")["metadata"], mode["metadata"]);
}

#[test]
fn the_webhook_is_where_its_configurations_say_and_stops_nobody() {
    let service = object("Service", "carina-controller");
    let deployment = object("Deployment", "csi-carina-provisioner");
    let arguments = strings(&container(&deployment, "carina-controller")["args"]);
    assert!(arguments.contains(&"--webhook-addr=:8443".to_owned()));
    let mut webhooks = Vec::new();
    for kind in ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"] {
        let configuration = object(kind, "carina-hook");
        webhooks.extend(configuration["webhooks"].as_array().unwrap().clone());
    }
    for webhook in &webhooks {
        let called = &webhook["clientConfig"]["service"];
        assert_eq!((&called["name"], &called["namespace"]), (&service["metadata"]["name"], &"kube-system".into()));
        assert!(service["spec"]["ports"].as_array().unwrap().iter().any(|port| port["port"] == called["port"]));
        assert_eq!((&webhook["failurePolicy"], &webhook["sideEffects"]), (&"Ignore".into(), &"None".into()));
        assert_eq!(strings(&webhook["rules"][0]["operations"]), ["CREATE"]);
    }
    let paths: Vec<_> = webhooks.iter().map(|w| w["clientConfig"]["service"]["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["/pod/mutate", "/storageclass/validate"]);
    let left_out = webhooks[0]["namespaceSelector"].to_string();
    assert!(left_out.contains("kube-system") && left_out.contains("carina.storage.io/webhook"));
}

#[test]
fn the_config_is_one_that_a_node_takes() {
    let config = object("ConfigMap", "carina-csi-config");
    let parsed = Config::parse(config["data"]["config.json"].as_str().unwrap()).unwrap();
    assert!(parsed.warnings.is_empty(), "{:?}", parsed.warnings);
    assert!(!parsed.config.disk_selector.is_empty());
}

#[test]
fn the_examples_use_classes_of_ours_that_are_there() {
    let all = objects("examples/kubernetes");
    let mut classes = BTreeMap::new();
    for class in all.iter().filter(|object| object["kind"] == "StorageClass") {
        assert_eq!(class["provisioner"], DRIVER_NAME);
        let parameters = class["parameters"].as_object().unwrap();
        let parameters = parameters.iter().map(|(key, value)| (key.as_str(), value.as_str().unwrap()));
        let parsed =
            ClassParameters::parse(parameters).unwrap_or_else(|e| panic!("{}: {e}", class["metadata"]["name"]));
        assert!(!(parsed.exclusive && class["allowVolumeExpansion"] == true), "an exclusive disk doesn't grow");
        classes.insert(class["metadata"]["name"].as_str().unwrap(), parsed);
    }
    let claims = all.iter().filter(|o| o["kind"] == "PersistentVolumeClaim");
    let templates = all.iter().flat_map(|o| o["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten());
    let mut named = 0;
    for claim in claims.clone().chain(templates) {
        assert!(classes.contains_key(claim["spec"]["storageClassName"].as_str().unwrap()), "{claim}");
        assert_eq!(strings(&claim["spec"]["accessModes"]), ["ReadWriteOnce"]);
        named += 1;
    }
    assert!(named >= 5);
    let there: BTreeSet<&str> = claims.map(|claim| claim["metadata"]["name"].as_str().unwrap()).collect();
    let text = serde_json::to_string(&all).unwrap();
    for used in text.split("\"claimName\":\"").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(there.contains(used), "{used}");
    }
    assert!(text.contains(TOPOLOGY_KEY));
    assert!(
        all.iter()
            .filter(|o| o["kind"] != "StorageClass" && o["kind"] != "Namespace")
            .all(|o| o["metadata"]["namespace"] == "carina")
    );
}
