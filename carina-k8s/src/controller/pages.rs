//! What the controller shows over HTTP: the figures of every node.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use axum::{Json, Router};

use super::mirror::Mirror;
use super::service::volume;
use crate::exposition::{self, Figures};
use crate::listing::{GroupEntry, VolumeEntry};
use crate::logic_volume::LogicVolume;
use crate::node_storage::NodeStorageResource;
use crate::web::{Ready, health};

/// The pages and, for another port, the metrics.
pub fn router(
    volumes: Arc<Mirror<LogicVolume>>,
    nodes: Arc<Mirror<NodeStorageResource>>,
    ready: Ready,
) -> (Router, Router) {
    let (groups_of, volumes_of) = (Arc::clone(&nodes), Arc::clone(&volumes));
    let pages = health(ready)
        .route(
            "/devicegroup",
            get(move || {
                let entries = group_entries(&groups_of);
                async move { Json(entries) }
            }),
        )
        .route(
            "/volume",
            get(move || {
                let entries = volume_entries(&volumes_of);
                async move { Json(entries) }
            }),
        );
    let metrics = Router::new().route(
        "/metrics",
        get(move || {
            let text = figures(&volumes, &nodes).text();
            async move { ([(CONTENT_TYPE, exposition::CONTENT_TYPE)], text) }
        }),
    );
    (pages, metrics)
}

/// The groups of each node, by its name.
fn group_entries(nodes: &Mirror<NodeStorageResource>) -> BTreeMap<String, Vec<GroupEntry>> {
    let entries = |node: Arc<NodeStorageResource>| {
        let groups = node.status.iter().flat_map(|status| &status.groups);
        let entries =
            groups.filter_map(|figures| figures.device_group()).map(|group| GroupEntry::from(&group)).collect();
        (node.spec.node_name.clone(), entries)
    };
    nodes.all().into_iter().map(entries).collect()
}

/// The volumes of each node, by its name.
fn volume_entries(volumes: &Mirror<LogicVolume>) -> BTreeMap<String, Vec<VolumeEntry>> {
    let mut by_node: BTreeMap<String, Vec<VolumeEntry>> = BTreeMap::new();
    for object in volumes.all() {
        let Some(volume) = volume(&object) else { continue };
        let device = object.status.as_ref().and_then(|s| s.device_major.zip(s.device_minor));
        by_node.entry(object.spec.node_name.clone()).or_default().push(VolumeEntry::of(&volume, device));
    }
    by_node.values_mut().for_each(|entries| entries.sort_by(|a, b| a.lv_name.cmp(&b.lv_name)));
    by_node
}

/// The documented metrics but the used bytes, which only a node's agent knows.
fn figures(volumes: &Mirror<LogicVolume>, nodes: &Mirror<NodeStorageResource>) -> Figures {
    let mut figures = Figures::default();
    for node in nodes.all() {
        let name = &node.spec.node_name;
        figures.add_orphans(name, node.status.as_ref().map_or(&[], |status| &status.orphans));
        let groups = node.status.iter().flat_map(|status| &status.groups);
        for group in groups.filter_map(|figures| figures.device_group()) {
            let labels = || vec![("device_group", group.name.to_string()), ("node", name.clone())];
            figures.free.add(labels(), group.free.get());
            figures.total.add(labels(), group.size.get());
        }
    }
    for volume in volumes.all().iter().filter_map(|object| volume(object)) {
        let node = volume.node.unwrap_or_default();
        figures.volume_total.add(vec![("volume", volume.id.to_string()), ("node", node)], volume.size.get());
    }
    figures
}
