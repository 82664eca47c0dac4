//! One leader among the replicas.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use carina_k8s::controller::Candidate;
use http::Method;
use tokio::task::JoinHandle;

use crate::api_server::{ApiServer, Fault};
use crate::server::Server;

/// Leads while it lives, counted.
struct Leading(Arc<AtomicUsize>);

impl Drop for Leading {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn candidate(server: &impl Server, name: &str, leaders: &Arc<AtomicUsize>) -> JoinHandle<()> {
    let candidate = Candidate::new(server.client(), "kube-system", "carina-controller", name);
    let leaders = Arc::clone(leaders);
    tokio::spawn(candidate.run(move || {
        let leaders = Arc::clone(&leaders);
        async move {
            leaders.fetch_add(1, Ordering::SeqCst);
            let _leading = Leading(leaders);
            std::future::pending::<()>().await;
        }
    }))
}

async fn holder(server: &impl Server) -> String {
    let lease = server.object("coordination.k8s.io/leases", "kube-system/carina-controller").await.unwrap();
    lease["spec"]["holderIdentity"].as_str().unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn there_is_one_leader_and_another_when_it_dies() {
    another_leads_when_the_leader_dies(&ApiServer::new(), 100).await;
}

/// Two candidates, of whom one leads through these seconds, and then the other.
pub async fn another_leads_when_the_leader_dies(server: &impl Server, seconds: u64) {
    let leaders = Arc::new(AtomicUsize::new(0));
    let (one, two) = (candidate(server, "one", &leaders), candidate(server, "two", &leaders));
    for _ in 0..seconds {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(leaders.load(Ordering::SeqCst), 1);
    }
    let first = holder(server).await;
    let (dies, lives) = if first == "one" { (one, two) } else { (two, one) };
    dies.abort();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(leaders.load(Ordering::SeqCst), 1);
    assert_ne!(holder(server).await, first);
    lives.abort();
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_cannot_renew_stops_before_another_begins() {
    let server = ApiServer::new();
    let leaders = Arc::new(AtomicUsize::new(0));
    let one = candidate(&server, "one", &leaders);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(leaders.load(Ordering::SeqCst), 1);
    server.inject(Method::PUT, "/leases", 1000, Fault::Status(500));
    tokio::time::sleep(Duration::from_secs(14)).await;
    assert_eq!(leaders.load(Ordering::SeqCst), 0, "given up before the lease ends");
    one.abort();
}
