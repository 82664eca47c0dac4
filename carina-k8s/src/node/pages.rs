//! What the agent shows over HTTP.

use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use carina_core::{Bytes, Engine, Error, VolumeService, VolumeType, Zeroing};
use tokio::sync::watch;

use super::verdict::device_numbers;
use crate::exposition::{self, Figures};
use crate::listing::{GroupEntry, VolumeEntry};
use crate::node_storage::OrphanFigures;
use crate::web::{Ready, health};

/// The pages and, for another port, the metrics.
pub fn router(
    engine: Engine,
    node: String,
    ready: Ready,
    orphans: watch::Receiver<Vec<OrphanFigures>>,
) -> (Router, Router) {
    let (groups, volumes) = (engine.clone(), engine.clone());
    let pages = health(ready)
        .route(
            "/devicegroup",
            get(move || {
                let engine = groups.clone();
                async move { answer(engine.groups().await.map(|all| all.iter().map(GroupEntry::from).collect())) }
            }),
        )
        .route(
            "/volume",
            get(move || {
                let engine = volumes.clone();
                let entry = |volume: &_| VolumeEntry::of(volume, device_numbers(volume));
                async move { answer(engine.list().await.map(|all| all.iter().map(entry).collect())) }
            }),
        );
    let metrics = Router::new().route(
        "/metrics",
        get(move || {
            let (engine, node) = (engine.clone(), node.clone());
            let orphans = orphans.borrow().clone();
            async move {
                match figures(&engine, &node, &orphans).await {
                    Ok(figures) => ([(CONTENT_TYPE, exposition::CONTENT_TYPE)], figures.text()).into_response(),
                    Err(error) => failed(&error),
                }
            }
        }),
    );
    (pages, metrics)
}

async fn figures(engine: &Engine, node: &str, orphans: &[OrphanFigures]) -> Result<Figures, Error> {
    let mut figures = Figures::default();
    figures.add_orphans(node, orphans);
    let zeroing = engine.background().await?;
    for group in engine.groups().await? {
        // A group of partitions by disk, and one whose volumes may be on several disks as a whole.
        let disks = if group.volume_type == VolumeType::Raw { group.disks.clone() } else { vec![String::new()] };
        for disk in disks {
            let here = |work: &&Zeroing| work.group == group.name && work.disk.as_deref().unwrap_or("") == disk;
            let left: Bytes = zeroing.iter().filter(here).map(Zeroing::left).sum();
            let labels = vec![("device_group", group.name.to_string()), ("disk", disk), ("node", node.to_owned())];
            figures.zeroing.add(labels, left.get());
        }
        let labels = || vec![("device_group", group.name.to_string()), ("node", node.to_owned())];
        figures.free.add(labels(), group.free.get());
        figures.total.add(labels(), group.size.get());
    }
    for volume in engine.list().await? {
        let labels = || vec![("volume", volume.id.to_string()), ("node", node.to_owned())];
        figures.volume_total.add(labels(), volume.size.get());
        if let Some(used) = volume.used {
            figures.volume_used.add(labels(), used.get());
        }
    }
    Ok(figures)
}

fn answer<T: serde::Serialize>(entries: Result<Vec<T>, Error>) -> Response {
    match entries {
        Ok(entries) => Json(entries).into_response(),
        Err(error) => failed(&error),
    }
}

fn failed(error: &Error) -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response()
}
