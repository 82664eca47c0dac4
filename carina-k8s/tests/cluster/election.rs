//! One leader among the replicas.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use carina_k8s::controller::{Before, Candidate};
use http::Method;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

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
    until_stopped(server, name, leaders, std::future::pending()).0
}

/// A candidate that is stopped some time; what it was told of the leader before, once it leads.
fn until_stopped(
    server: &impl Server,
    name: &str,
    leaders: &Arc<AtomicUsize>,
    stop: impl Future<Output = Duration> + Send + 'static,
) -> (JoinHandle<()>, watch::Receiver<Option<Before>>) {
    let candidate = Candidate::new(server.client(), "kube-system", "carina-controller", name);
    let leaders = Arc::clone(leaders);
    let (tell, told) = watch::channel(None);
    let work = move |before| {
        let leaders = Arc::clone(&leaders);
        tell.send_replace(Some(before));
        async move {
            leaders.fetch_add(1, Ordering::SeqCst);
            let _leading = Leading(leaders);
            std::future::pending::<()>().await;
        }
    };
    (tokio::spawn(candidate.run(work, stop)), told)
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

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_stopped_hands_its_lease_over_at_once() {
    let server = ApiServer::new();
    let leaders = Arc::new(AtomicUsize::new(0));
    let (stop, stopped) = oneshot::channel();
    let (one, before) = until_stopped(&server, "one", &leaders, async { stopped.await.unwrap() });
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(*before.borrow(), Some(Before::Unknown), "who makes the lease knows of nobody");
    let (stop_two, stopped) = oneshot::channel();
    let (two, mut before) = until_stopped(&server, "two", &leaders, async { stopped.await.unwrap() });
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(*before.borrow(), None);
    // An API server that doesn't answer at first.
    server.inject(Method::GET, "/leases", 2, Fault::Status(500));
    let began = Instant::now();
    stop.send(Duration::from_millis(6500)).unwrap();
    before.changed().await.unwrap();
    assert_eq!(*before.borrow(), Some(Before::HandedOver(Duration::from_secs(7))), "rounded up");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    one.await.unwrap();
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!((leaders.load(Ordering::SeqCst), holder(&server).await.as_str()), (1, "two"));
    // One that can't be told of the end: the lease runs out, and nobody knows how it ended.
    server.inject(Method::PUT, "/leases", 1000, Fault::Status(500));
    stop_two.send(Duration::ZERO).unwrap();
    let began = Instant::now();
    two.await.unwrap();
    assert!(began.elapsed() <= Duration::from_secs(5), "it doesn't wait for ever");
    server.clear_faults();
    let (three, mut before) = until_stopped(&server, "three", &leaders, std::future::pending());
    before.changed().await.unwrap();
    assert_eq!(*before.borrow(), Some(Before::Unknown));
    assert!(began.elapsed() >= Duration::from_secs(10), "{:?}", began.elapsed());
    three.abort();
}

#[tokio::test(start_paused = true)]
async fn who_does_not_lead_gives_up_nobodys_lease() {
    let server = ApiServer::new();
    let leaders = Arc::new(AtomicUsize::new(0));
    let one = candidate(&server, "one", &leaders);
    tokio::time::sleep(Duration::from_secs(20)).await;
    let (two, before) = until_stopped(&server, "two", &leaders, async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        Duration::ZERO
    });
    two.await.unwrap();
    assert_eq!((*before.borrow(), holder(&server).await.as_str()), (None, "one"));
    one.abort();
}
