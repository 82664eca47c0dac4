//! Writes that hold only for an object as it was decided on: each carries its uid and version.

use std::fmt::Debug;

use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Changes an object if it is still as it was decided on; `None` if it isn't.
pub(super) async fn patch<K>(api: &Api<K>, object: &K, mut change: Value) -> Result<Option<K>, kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    change["metadata"]["uid"] = json!(object.meta().uid);
    change["metadata"]["resourceVersion"] = json!(object.meta().resource_version);
    unless_changed(api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(&change)).await)
}

/// Deletes an object if it is still the one that was decided on; whether it was.
pub(super) async fn delete<K>(api: &Api<K>, object: &K) -> Result<bool, kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    unless_changed(api.delete(&object.name_any(), &as_decided_on(object)).await).map(|done| done.is_some())
}

/// How to delete an object only if it is still as it was decided on.
pub(super) fn as_decided_on<K: Resource>(object: &K) -> DeleteParams {
    let preconditions =
        Preconditions { uid: object.meta().uid.clone(), resource_version: object.meta().resource_version.clone() };
    DeleteParams::default().preconditions(preconditions)
}

/// What was written; `None` if the object is gone or another by now, which the watch tells.
pub(super) fn unless_changed<T>(written: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match written {
        Ok(written) => Ok(Some(written)),
        Err(error) if conflicts(&error) => Ok(None),
        Err(kube::Error::Api(refused)) if refused.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a write was refused because somebody was quicker.
pub(super) fn conflicts(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(refused) if refused.code == 409)
}
