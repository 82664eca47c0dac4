//! From `lvm fullreport --reportformat json` to the [`Layout`] of groups: LVM's own view, for a cold
//! start and for disks whose metadata can't be read directly.

use std::collections::BTreeMap;

use carina_core::Bytes;
use serde::Deserialize;

use crate::layout::{Kind, Layout, LogicalVolume, Member};
use crate::text::plain_uuid;

/// The columns that are asked for, by subreport.
pub const COLUMNS: [(&str, &str); 5] = [
    ("vg", "vg_name,vg_uuid,vg_seqno,vg_tags,vg_extent_size,vg_size,vg_free"),
    ("pv", "pv_name,pv_uuid,pv_missing"),
    ("lv", "lv_name,lv_size,lv_tags,pool_lv,metadata_lv"),
    ("pvseg", "pv_name"),
    ("seg", "lv_name,segtype,chunk_size,transaction_id,zero"),
];

#[derive(Deserialize)]
struct Document {
    report: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    #[serde(default)]
    vg: Vec<Row>,
    #[serde(default)]
    pv: Vec<Row>,
    #[serde(default)]
    lv: Vec<Row>,
    #[serde(default)]
    seg: Vec<Row>,
}

/// A row: LVM gives every value as a text.
type Row = BTreeMap<String, String>;

/// The groups of a report.
///
/// # Errors
/// What doesn't make sense, in words.
pub fn parse(json: &[u8]) -> Result<Vec<Layout>, String> {
    let document: Document = serde_json::from_slice(json).map_err(|e| format!("LVM's report makes no sense: {e}"))?;
    document.report.iter().filter(|group| !group.vg.is_empty()).map(layout).collect()
}

fn layout(group: &Group) -> Result<Layout, String> {
    let vg = group.vg.first().ok_or("LVM's report has no group")?;
    // A hidden volume stands in brackets, a volume of several segments in several rows.
    let mut segments: BTreeMap<String, Vec<&Row>> = BTreeMap::new();
    for row in &group.seg {
        segments.entry(bare(text(row, "lv_name")?)).or_default().push(row);
    }
    let mut volumes = BTreeMap::new();
    for row in &group.lv {
        let shown = text(row, "lv_name")?;
        let name = bare(shown);
        let kind = match segments.get(&name) {
            Some(segments) => kind(row, segments)?,
            None => Kind::Other,
        };
        let volume = LogicalVolume {
            tags: tags(row, "lv_tags"),
            size: bytes(row, "lv_size")?,
            visible: !shown.starts_with('['),
            kind,
        };
        volumes.insert(name, volume);
    }
    let disks = group.pv.iter().map(|row| {
        Ok(Member {
            uuid: plain_uuid(text(row, "pv_uuid")?),
            device: text(row, "pv_name")?.to_owned(),
            missing: !text(row, "pv_missing")?.is_empty(),
        })
    });
    Ok(Layout {
        name: text(vg, "vg_name")?.to_owned(),
        uuid: plain_uuid(text(vg, "vg_uuid")?),
        seqno: number(vg, "vg_seqno")?,
        tags: tags(vg, "vg_tags"),
        extent: bytes(vg, "vg_extent_size")?,
        size: bytes(vg, "vg_size")?,
        free: bytes(vg, "vg_free")?,
        disks: disks.collect::<Result<_, String>>()?,
        volumes,
    })
}

fn kind(volume: &Row, segments: &[&Row]) -> Result<Kind, String> {
    let Some(segment) = segments.first() else { return Ok(Kind::Other) };
    if segments.iter().all(|segment| text(segment, "segtype") == Ok("linear")) {
        return Ok(Kind::Linear);
    }
    Ok(match text(segment, "segtype")? {
        "thin-pool" => Kind::Pool {
            chunk: bytes(segment, "chunk_size")?,
            metadata: bare(text(volume, "metadata_lv")?),
            transaction: number(segment, "transaction_id")?,
            zero: text(segment, "zero")? == "zero",
        },
        "thin" => Kind::Thin { pool: bare(text(volume, "pool_lv")?) },
        "error" => Kind::Error,
        _ => Kind::Other,
    })
}

fn bare(name: &str) -> String {
    name.trim_start_matches('[').trim_end_matches(']').to_owned()
}

fn text<'a>(row: &'a Row, column: &str) -> Result<&'a str, String> {
    row.get(column).map(String::as_str).ok_or_else(|| format!("LVM's report lacks the column {column}"))
}

fn number(row: &Row, column: &str) -> Result<u64, String> {
    let value = text(row, column)?;
    value.parse().map_err(|_| format!("LVM's report has \"{value}\" in the column {column}, which is no number"))
}

fn bytes(row: &Row, column: &str) -> Result<Bytes, String> {
    number(row, column).map(Bytes)
}

fn tags(row: &Row, column: &str) -> Vec<String> {
    let mut tags: Vec<String> = row
        .get(column)
        .map(|t| t.split(',').filter(|t| !t.is_empty()).map(str::to_owned).collect())
        .unwrap_or_default();
    tags.sort();
    tags
}
