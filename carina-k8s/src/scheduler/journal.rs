//! The journal: each pod's answers in the log, node by node. They are written by a thread of their own, for a
//! log may be slower than a scheduler, and no answer waits for it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use carina_sched::{Offer, PodId, Reasons};
use tokio::sync::oneshot;
use tracing::dispatcher::{self, Dispatch};

use super::asks::Trouble;
use super::protocol::MOST;

/// Of how many nodes the reasons are written out for a pod; `explain` has them all.
pub const SHOWN: usize = 100;
/// How many answers may wait to be written.
const WAITING: usize = 1024;
/// How long the end of the program waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(2);
/// How often it is looked whether there is room for the last.
const LOOKS: Duration = Duration::from_millis(20);

/// What a pod was answered.
pub enum Entry {
    /// None of its volumes is ours.
    Foreign(PodId),
    /// No node will do, whatever it has.
    Refused(PodId, Trouble),
    /// It was offered nodes, or none.
    Offered(PodId, Box<Offered>),
    /// The scores of its nodes.
    Scored(PodId, Vec<(String, u32)>),
    /// A node where no pod is evicted, for it would have no room for the pod's volumes.
    Spared(PodId, String),
    /// All before it is written.
    End(oneshot::Sender<()>),
}

/// What a pod was offered, and why not more.
pub struct Offered {
    /// How many nodes it was about.
    pub asked: usize,
    /// The offer.
    pub offer: Offer,
    /// Why it doesn't fit elsewhere, where it doesn't.
    pub reasons: Option<Box<Reasons>>,
    /// The first [`SHOWN`] of the nodes where it doesn't.
    pub first: Vec<String>,
    /// What all of them were answered, where that was worked out.
    pub summaries: Vec<&'static str>,
}

/// Where answers are written down. Clones share it.
#[derive(Debug, Clone)]
pub struct Journal {
    queue: SyncSender<Entry>,
    left_out: Arc<AtomicU64>,
}

impl Journal {
    /// A journal that is written to the log of whoever starts it, until its last clone is dropped.
    #[must_use]
    pub fn start() -> Self {
        let (queue, waiting) = sync_channel(WAITING);
        let left_out = Arc::new(AtomicU64::new(0));
        let (log, unwritten) = (dispatcher::get_default(Dispatch::clone), Arc::clone(&left_out));
        let writer = move || dispatcher::with_default(&log, || write(&waiting, &unwritten));
        if let Err(error) = std::thread::Builder::new().name("journal".to_owned()).spawn(writer) {
            tracing::error!("pods' answers are not written to the log: no thread for it: {error}");
        }
        Self { queue, left_out }
    }

    /// Writes an answer down, soon; or counts it as left out, if too many wait.
    pub fn put(&self, entry: Entry) {
        if self.queue.try_send(entry).is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many answers were left out, because the log was slower than the scheduler.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }

    /// Waits, not for long, until all is written that was put before.
    pub async fn written(&self) {
        let (done, wait) = oneshot::channel();
        let mut end = Entry::End(done);
        let all = async {
            while let Err(TrySendError::Full(back)) = self.queue.try_send(end) {
                end = back;
                tokio::time::sleep(LOOKS).await;
            }
            wait.await
        };
        let _ = tokio::time::timeout(LAST_LINES, all).await;
    }
}

fn write(waiting: &Receiver<Entry>, left_out: &AtomicU64) {
    let mut told = 0;
    while let Ok(entry) = waiting.recv() {
        let now = left_out.load(Ordering::Relaxed);
        if now > told {
            tracing::warn!("{} answers are not written here: this log is slower than the scheduler asks", now - told);
            told = now;
        }
        write_one(entry);
    }
}

fn write_one(entry: Entry) {
    match entry {
        Entry::Foreign(pod) => tracing::debug!(%pod, "none of its volumes is ours"),
        Entry::Refused(pod, trouble) => tracing::info!(%pod, "no node will do: {trouble}"),
        Entry::Offered(pod, offered) => offered.write(&pod),
        Entry::Scored(pod, scores) => {
            for (node, score) in scores {
                tracing::info!(%pod, %node, score, "scored, of {MOST}");
            }
        }
        Entry::Spared(pod, node) => {
            tracing::info!(%pod, %node, "no pod is evicted: the node would have no room for its volumes");
        }
        // Who waited may have given up.
        Entry::End(done) => drop(done.send(())),
    }
}

impl Offered {
    fn write(&self, pod: &PodId) {
        if !tracing::enabled!(tracing::Level::INFO) {
            return;
        }
        tracing::info!(%pod, "{}", InShort(self));
        for (node, score) in &self.offer.nodes {
            tracing::info!(%pod, %node, points = score.points(), "fits");
        }
        let reasons = self.reasons.iter().flat_map(|reasons| reasons.of(self.first.iter().map(String::as_str)));
        for (node, reason) in reasons {
            tracing::info!(%pod, %node, "does not fit: {reason}");
        }
        let more = self.offer.rejected.len().saturating_sub(self.first.len());
        if more > 0 {
            tracing::info!(%pod, "{more} more nodes don't fit{}; `carina-scheduler explain` has them", Tally(&self.summaries));
        }
    }
}

struct InShort<'a>(&'a Offered);

impl fmt::Display for InShort<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Offered { asked, offer, .. } = self.0;
        write!(f, "{} of {asked} nodes offered", offer.nodes.len())?;
        if offer.withheld > 0 {
            write!(f, ", {} others fit and are kept for other pods", offer.withheld)?;
        }
        write!(f, ", {} don't fit", offer.rejected.len())
    }
}

struct Tally<'a>(&'a [&'static str]);

impl fmt::Display for Tally<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
        self.0.iter().for_each(|kind| *kinds.entry(kind).or_default() += 1);
        for (i, (kind, nodes)) in kinds.into_iter().enumerate() {
            write!(f, "{}{nodes} x {kind}", if i == 0 { "; in all " } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Mutex, MutexGuard};

    use carina_sched::{Offers, PodRequest, Strategy};
    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    /// A log in memory, which is written while nobody holds it.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Log {
        fn journal(&self) -> Journal {
            let log = tracing_subscriber::fmt().with_ansi(false).with_writer(self.clone()).finish();
            dispatcher::with_default(&Dispatch::new(log), Journal::start)
        }

        fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
            self.0.lock().unwrap()
        }

        fn text(&self) -> String {
            String::from_utf8(self.lock().clone()).unwrap()
        }
    }

    impl io::Write for Log {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.lock().write(line)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Log {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    #[tokio::test]
    async fn each_node_has_its_line_and_what_is_too_much_is_counted() {
        let log = Log::default();
        let journal = log.journal();
        let nodes: Vec<String> = (0..SHOWN + 20).map(|n| format!("n{n}")).collect();
        let names: Vec<&str> = nodes.iter().map(String::as_str).collect();
        let claim = carina_sched::Claim::lvm(
            "pvc-1".parse().unwrap(),
            carina_core::Bytes::GIB,
            carina_core::GroupSelector::Any,
        );
        let request = PodRequest::new("db/web/1".into(), vec![claim]);
        let mut offers = Offers::new(Strategy::Binpack, Duration::from_secs(20));
        let offer = offers.filter(&request, &names, Duration::ZERO).unwrap();
        let reasons = offers.why_not(&request);
        let offered = Offered {
            asked: nodes.len(),
            offer,
            summaries: reasons.summaries(names.iter().copied()),
            reasons: Some(Box::new(reasons)),
            first: nodes[..SHOWN].to_vec(),
        };
        journal.put(Entry::Offered(request.pod.clone(), Box::new(offered)));
        journal.put(Entry::Scored(request.pod.clone(), vec![("n7".to_owned(), 9)]));
        journal.written().await;
        let text = log.text();
        assert!(text.contains("0 of 120 nodes offered, 120 don't fit"), "{text}");
        assert_eq!(text.matches("has not reported to carina").count(), SHOWN, "{text}");
        assert!(text.contains("20 more nodes don't fit; in all 120 x node is not known to carina"), "{text}");
        assert!(text.contains("scored, of 10 pod=db/web/1 node=n7 score=9"), "{text}");
        assert_eq!(journal.left_out(), 0);
    }

    #[tokio::test]
    async fn a_log_that_is_slower_than_the_scheduler_holds_up_nobody_and_says_what_it_lacks() {
        let log = Log::default();
        let journal = log.journal();
        let entry = || Entry::Scored("db/web/1".into(), vec![("n1".to_owned(), 1)]);
        {
            let _stuck = log.lock();
            for _ in 0..2 * WAITING {
                journal.put(entry());
            }
        }
        // At most one was being written.
        let left_out = journal.left_out();
        assert!((WAITING as u64 - 1..=WAITING as u64).contains(&left_out), "{left_out}");
        journal.written().await;
        journal.put(entry());
        journal.written().await;
        let text = log.text();
        assert!(text.contains("answers are not written here"), "{text}");
        assert_eq!(text.matches("scored").count() as u64 + journal.left_out(), 2 * WAITING as u64 + 1);
    }
}
