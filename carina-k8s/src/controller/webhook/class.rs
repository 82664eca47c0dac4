//! Whether a StorageClass of ours can be what it says.

use carina_core::ClassParameters;
use carina_csi::{DRIVER_NAME, MountOptions, TOPOLOGY_KEY};
use k8s_openapi::api::storage::v1::StorageClass;

/// What the keys of our parameters begin with.
const PREFIX: &str = "carina.storage.io/";

/// Checks a class that is about to be made. Parameters never change afterwards, so that a mistake would
/// otherwise be found by the first claim that stays pending.
///
/// # Errors
/// Why no volume could be made by it, with the right spelling. What is only odd is a warning.
pub fn check(class: &StorageClass) -> Result<Vec<String>, String> {
    let parameters = || class.parameters.iter().flatten().map(|(key, value)| (key.as_str(), value.as_str()));
    let mut warnings = Vec::new();
    if class.provisioner != DRIVER_NAME {
        if let Some((key, _)) = parameters().find(|(key, _)| key.starts_with(PREFIX)) {
            warnings.push(format!(
                "parameter {key} is Carina's and the provisioner is {}; Carina's is {DRIVER_NAME}",
                class.provisioner
            ));
        }
        return Ok(warnings);
    }
    let parsed = ClassParameters::parse(parameters()).map_err(|error| error.to_string())?;
    MountOptions::parse(class.mount_options.as_deref().unwrap_or_default()).map_err(|error| error.to_string())?;
    if parsed.exclusive && class.allow_volume_expansion == Some(true) {
        warnings.push(
            "allowVolumeExpansion is true, and a volume that has its raw disk to itself never grows: claims that ask \
             for more will fail"
                .to_owned(),
        );
    }
    let topologies = class.allowed_topologies.iter().flatten();
    for expression in topologies.flat_map(|term| term.match_label_expressions.iter().flatten()) {
        if expression.key != TOPOLOGY_KEY {
            warnings.push(format!(
                "allowedTopologies speaks of {}, and volumes of this driver are told apart by {TOPOLOGY_KEY} alone",
                expression.key
            ));
        }
    }
    Ok(warnings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check_json(class: Value) -> Result<Vec<String>, String> {
        let mut whole = json!({ "metadata": { "name": "c" }, "provisioner": DRIVER_NAME });
        for (key, value) in class.as_object().unwrap() {
            whole[key] = value.clone();
        }
        check(&serde_json::from_value(whole).unwrap())
    }

    #[test]
    fn a_class_that_can_work_is_taken_and_others_classes_are_left_alone() {
        let good = json!({ "parameters": {
            "carina.storage.io/disk-group-name": "ssd", "csi.storage.k8s.io/fstype": "xfs",
        }, "mountOptions": ["noatime"], "allowVolumeExpansion": true });
        assert_eq!(check_json(good), Ok(vec![]));
        assert_eq!(check_json(json!({ "provisioner": "other", "parameters": { "x": "y" } })), Ok(vec![]));
        let wrong = check_json(json!({ "provisioner": "carina", "parameters": { "carina.storage.io/wipe": "none" } }));
        assert!(wrong.unwrap()[0].contains("carina.storage.io/wipe is Carina's"));
    }

    #[test]
    fn what_could_never_make_a_volume_is_refused_with_the_right_spelling() {
        for (class, says) in [
            (
                json!({ "parameters": { "carina.storage.io/disk-typ": "ssd" } }),
                "did you mean carina.storage.io/disk-type?",
            ),
            (json!({ "parameters": { "fstype": "xfs" } }), "csi.storage.k8s.io/fstype"),
            (json!({ "parameters": { "carina.storage.io/volume-type": "lwm" } }), "lvm (the default) or raw"),
            (
                json!({ "parameters": {
                    "carina.storage.io/disk-type": "hdd", "carina.storage.io/disk-group-name": "ssd",
                } }),
                "keep one of them",
            ),
            (json!({ "parameters": { "carina.storage.io/exclusively-raw-disk": "true" } }), "volume-type: raw"),
            (json!({ "mountOptions": ["bind"] }), "mount option \"bind\""),
        ] {
            let refused = check_json(class.clone()).unwrap_err();
            assert!(refused.contains(says), "{class}: {refused}");
        }
    }

    #[test]
    fn what_is_odd_is_said() {
        let exclusive = json!({ "parameters": {
            "carina.storage.io/volume-type": "raw", "carina.storage.io/exclusively-raw-disk": "true",
        }, "allowVolumeExpansion": true });
        assert!(check_json(exclusive).unwrap()[0].contains("never grows"));
        let zone = json!({ "allowedTopologies": [{ "matchLabelExpressions": [{ "key": "zone", "values": ["a"] }] }] });
        assert!(check_json(zone).unwrap()[0].contains("zone"));
    }
}
