//! Carina's own service for the disks of a node, beside CSI on the same socket.

use std::time::UNIX_EPOCH;

use carina_core::{Drain, DrainBy, Engine, Event};
use tonic::{Request, Response, Status, async_trait};

use crate::proto::carina::disks_server::Disks;
use crate::proto::carina::{
    CancelDrainRequest, CancelDrainResponse, Condition, Drain as DrainMessage, DrainRequest, DrainResponse,
    ListConditionsRequest, ListConditionsResponse, ListDrainsRequest, ListDrainsResponse,
};
use crate::status::{Call, status};

pub(crate) struct DisksService {
    pub(crate) engine: Engine,
}

#[async_trait]
impl Disks for DisksService {
    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        let drain = self.engine.drain(&request.into_inner().disk, DrainBy::Person).await;
        let drain = drain.map_err(|error| status(Call::Other, &error))?;
        Ok(Response::new(DrainResponse { drain: Some(message(&drain)) }))
    }

    async fn cancel_drain(
        &self,
        request: Request<CancelDrainRequest>,
    ) -> Result<Response<CancelDrainResponse>, Status> {
        let done = self.engine.cancel_drain(&request.into_inner().disk).await;
        done.map_err(|error| status(Call::Other, &error))?;
        Ok(Response::new(CancelDrainResponse {}))
    }

    async fn list_drains(&self, _: Request<ListDrainsRequest>) -> Result<Response<ListDrainsResponse>, Status> {
        let drains = self.engine.drains().await.map_err(|error| status(Call::Other, &error))?;
        Ok(Response::new(ListDrainsResponse { drains: drains.iter().map(message).collect() }))
    }

    async fn list_conditions(
        &self,
        _: Request<ListConditionsRequest>,
    ) -> Result<Response<ListConditionsResponse>, Status> {
        let conditions = self.engine.standing().into_iter().map(condition).collect();
        Ok(Response::new(ListConditionsResponse { conditions }))
    }
}

fn message(drain: &Drain) -> DrainMessage {
    DrainMessage {
        disk: drain.disk.name.clone(),
        group: drain.group.to_string(),
        left_bytes: drain.left.get(),
        by: drain.by.to_string(),
    }
}

fn condition(event: Event) -> Condition {
    let since = event.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Condition {
        subject: event.subject.to_string(),
        reason: event.reason.to_string(),
        failed: event.reason.is_down(),
        message: event.message,
        evidence: event.evidence.unwrap_or_default(),
        since: i64::try_from(since).unwrap_or(i64::MAX),
    }
}
