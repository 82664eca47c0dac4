//! Questions to the API server whose "no" can be relied on.
//!
//! A GET answers 404 for an object that isn't there and for a kind that isn't there (a deleted
//! definition), and a watch may be behind. A LIST without a version is answered from what is stored now,
//! and fails where the kind is gone: an empty one is an absence, everything else is not.

use std::fmt::Debug;

use kube::Api;
use kube::api::ListParams;
use serde::de::DeserializeOwned;

/// How many objects are asked for at once.
const PAGE: u32 = 500;

/// Every object of a kind, as stored now, handed on page by page.
///
/// # Errors
/// What the API server failed with; nothing is known of what is there then.
pub(crate) async fn every<K>(api: &Api<K>, mut each: impl FnMut(K)) -> Result<(), kube::Error>
where
    K: Clone + DeserializeOwned + Debug,
{
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let list = api.list(&page).await?;
        list.items.into_iter().for_each(&mut each);
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(()),
        }
    }
}

/// The object of this name, as stored now; `None` only if there is none.
///
/// # Errors
/// What the API server failed with, a kind that it doesn't have included.
pub(crate) async fn one<K>(api: &Api<K>, name: &str) -> Result<Option<K>, kube::Error>
where
    K: Clone + DeserializeOwned + Debug,
{
    Ok(api.list(&ListParams::default().fields(&format!("metadata.name={name}"))).await?.items.pop())
}
