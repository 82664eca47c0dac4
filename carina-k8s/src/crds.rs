//! The CustomResourceDefinitions, made from the Rust types.

use kube::CustomResourceExt;
use serde_json::Value;

use crate::{LogicVolume, NodeStorageResource};

/// The folder of the definitions, and that of the same without what Kubernetes has from 1.30 on.
const FOLDERS: [(&str, bool); 2] = [("crds", false), ("crds-before-1.30", true)];

/// Each definition with the file that it is kept in, below `deploy/kubernetes`.
///
/// # Errors
/// If a definition cannot be written as YAML.
pub fn definitions() -> Result<Vec<(String, String)>, Box<dyn std::error::Error>> {
    let mut files = Vec::new();
    for crd in [LogicVolume::crd(), NodeStorageResource::crd()] {
        let name = crd.metadata.name.clone().unwrap_or_default();
        let mut value = serde_json::to_value(crd)?;
        tidy(&mut value);
        for (folder, older) in FOLDERS {
            if older {
                make_older(&mut value);
            }
            let text = serde_saphyr::to_string(&value)?;
            let note = "# Made by `cargo xtask crds` from the types in carina-k8s; don't edit.";
            files.push((format!("{folder}/{name}.yaml"), format!("{note}\n{text}")));
        }
    }
    Ok(files)
}

/// Takes out what an older API server refuses a definition for: rules (their `quantity()` is of 1.29), and fields
/// to select by (1.30). The agents check objects too.
fn make_older(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.retain(|key, _| !matches!(key.as_str(), "x-kubernetes-validations" | "selectableFields"));
            object.values_mut().for_each(make_older);
        }
        Value::Array(items) => items.iter_mut().for_each(make_older),
        _ => {}
    }
}

/// Takes out what the API server warns of (formats that it doesn't know) and what only makes the
/// definition long (what the fields of a condition are).
fn tidy(value: &mut Value) {
    match value {
        Value::Object(object) => {
            if object.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
                object.remove("format");
            }
            if let Some(fields) = object.get_mut("conditions").and_then(|c| c.pointer_mut("/items")) {
                drop_descriptions(fields);
            }
            object.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

fn drop_descriptions(schema: &mut Value) {
    let Value::Object(schema) = schema else { return };
    schema.remove("description");
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        properties.values_mut().for_each(drop_descriptions);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn what_is_checked_in_is_what_the_types_make() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes");
        for (file, text) in super::definitions().unwrap() {
            let kept = std::fs::read_to_string(folder.join(&file)).unwrap_or_default();
            assert!(kept == text, "{file} is not what the types make; run `cargo xtask crds`");
            let newer = text.contains("x-kubernetes-validations") || text.contains("selectableFields");
            assert!(!(newer && file.starts_with("crds-before")), "{file} is refused by older API servers");
        }
    }
}
