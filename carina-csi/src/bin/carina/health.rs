//! `carina health`: what is wrong now with disks, groups and volumes.

use std::time::{SystemTime, UNIX_EPOCH};

use carina_core::Event;
use carina_csi::proto;
use clap::Args;
use serde::Serialize;

use crate::client::Client;
use crate::failure::Failure;
use crate::node::Node;
use crate::options::Options;
use crate::output;
use crate::volumes::Through;

/// Show what is wrong with disks, groups and volumes, since when, and what to do.
///
/// Through a server: what it has seen, I/O errors of the last hour and SMART included. Without one: what
/// one look at the groups and volumes shows. Nothing is changed, so it works beside a server too.
#[derive(Debug, Args)]
pub struct Health {
    #[command(flatten)]
    through: Through,
}

/// Something that holds.
#[derive(Debug, Serialize)]
struct Row {
    subject: String,
    reason: String,
    failed: bool,
    message: String,
    evidence: String,
    /// In seconds since 1970.
    since: i64,
}

impl From<Event> for Row {
    fn from(event: Event) -> Self {
        let since = event.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self {
            subject: event.subject.to_string(),
            reason: event.reason.to_string(),
            failed: event.reason.is_down(),
            message: event.message,
            evidence: event.evidence.unwrap_or_default(),
            since: i64::try_from(since).unwrap_or(i64::MAX),
        }
    }
}

impl From<proto::carina::Condition> for Row {
    fn from(condition: proto::carina::Condition) -> Self {
        let proto::carina::Condition { subject, reason, failed, message, evidence, since } = condition;
        Self { subject, reason, failed, message, evidence, since }
    }
}

impl Health {
    /// Shows it.
    pub async fn run(&self, options: &Options) -> Result<(), Failure> {
        let now = SystemTime::now();
        let rows: Vec<Row> = match self.through.endpoint() {
            Some(endpoint) => Client::connect(endpoint).await?.conditions().await?.into_iter().map(Row::from).collect(),
            None => Node::look(options)?.sights(now).await?.into_iter().map(Row::from).collect(),
        };
        let now = i64::try_from(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()).unwrap_or(i64::MAX);
        output::show(options.output, rows.as_slice(), |rows| table(rows, now))
    }
}

fn table(rows: &[Row], now: i64) -> String {
    if rows.is_empty() {
        return "nothing is wrong that can be seen".to_owned();
    }
    output::table(
        ["WHAT", "STATE", "REASON", "FOR", "WHAT TO KNOW"],
        rows.iter().map(|row| {
            let state = if row.failed { "failed" } else { "degraded" };
            let words = if row.evidence.is_empty() {
                row.message.clone()
            } else {
                format!("{} ({})", row.message, row.evidence)
            };
            [
                row.subject.clone(),
                state.to_owned(),
                row.reason.clone(),
                format!("{} s", now.saturating_sub(row.since)),
                words,
            ]
        }),
    )
}
