//! Filtering and scoring of all nodes at once.

use carina_core::Strategy;

use crate::column::{GroupPage, Row};
use crate::compiled::{Compiled, Need, Weights, points, votes};
use crate::evaluate::{Evaluator, Goodness, Groups};
use crate::packing::FreeDisk;
use crate::paged::PAGE;
use crate::request::{PodRequest, RequestError};
use crate::strategy::POINTS;
use crate::tie;
use crate::view::{ClusterView, Node};

/// Filters, scores and chooses among the nodes of a view. It keeps its working memory: after the first
/// request of a kind, the next ones allocate nothing.
#[derive(Debug, Default, Clone)]
pub struct Scorer {
    pub(crate) compiled: Compiled,
    pub(crate) evaluator: Evaluator,
    points: Vec<u32>,
}

/// The points of a node that won't do.
const REJECTED: u32 = u32::MAX;

/// The outcome of scoring a view, node by node.
#[derive(Debug, Clone, Copy)]
pub struct Scores<'a> {
    view: &'a ClusterView,
    points: &'a [u32],
    claims: u32,
}

/// How good a node is, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Score {
    points: u32,
    claims: u32,
}

impl Score {
    pub(crate) const fn new(points: u32, claims: u32) -> Self {
        Self { points, claims }
    }

    /// The mean of the claims' points, 0 to [`POINTS`]; half of that for a pod without new claims, for
    /// which every node is alike.
    #[must_use]
    pub const fn points(self) -> u32 {
        match self.points.checked_div(self.claims) {
            Some(mean) => mean,
            None => POINTS / 2,
        }
    }

    /// The score in a caller's range, 0 to `max`, rounded to the nearest.
    #[must_use]
    pub fn in_range(self, max: u32) -> u32 {
        let (points, whole) = match self.claims {
            0 => (1, 2),
            claims => (u64::from(self.points), u64::from(claims) * u64::from(POINTS)),
        };
        let score = (points * u64::from(max) + whole / 2) / whole;
        u32::try_from(score).unwrap_or(max)
    }
}

impl<'a> Scores<'a> {
    /// The score of a node, or `None` if the request cannot go there.
    #[must_use]
    pub fn get(&self, node: &str) -> Option<Score> {
        self.at(self.view.index(node)?)
    }

    /// The score of a node by its index.
    pub(crate) fn at(&self, index: usize) -> Option<Score> {
        let points = *self.points.get(index)?;
        (points != REJECTED).then_some(Score { points, claims: self.claims })
    }

    /// The nodes that will do, with their scores.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, Score)> + use<'a> {
        let scores = *self;
        self.view.nodes().filter_map(move |(index, node)| Some((node.name.as_ref(), scores.at(index)?)))
    }

    /// The indices of the nodes that will do.
    pub(crate) fn indices(&self) -> impl Iterator<Item = usize> {
        self.points.iter().enumerate().filter(|(_, points)| **points != REJECTED).map(|(index, _)| index)
    }

    /// How many nodes were looked at, fit or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.view.len()
    }

    /// Whether the view has no nodes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.view.is_empty()
    }

    /// How many nodes will do.
    #[must_use]
    pub fn fitting(&self) -> usize {
        self.points.iter().filter(|points| **points != REJECTED).count()
    }
}

impl Scorer {
    /// A scorer without any memory of requests.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Filters and scores every node.
    ///
    /// # Errors
    /// [`RequestError`] if the request makes no sense by itself.
    pub fn score<'a>(
        &'a mut self,
        view: &'a ClusterView,
        request: &PodRequest,
        strategy: Strategy,
    ) -> Result<Scores<'a>, RequestError> {
        let pinned = self.prepare(view, request, strategy)?;
        self.points.clear();
        self.points.resize(view.slots(), REJECTED);
        if self.compiled.nowhere.is_none() {
            if pinned.is_none()
                && self.compiled.simple
                && request.topology.terms.is_empty()
                && !request.claims.is_empty()
            {
                for (number, lanes) in self.points.chunks_mut(PAGE).enumerate() {
                    score_page(&self.compiled, view, number, lanes);
                }
            } else {
                self.score_each(view, request, pinned);
            }
        }
        let claims = u32::try_from(request.claims.len()).unwrap_or(u32::MAX);
        Ok(Scores { view, points: &self.points, claims })
    }

    fn score_each(&mut self, view: &ClusterView, request: &PodRequest, pinned: Option<&str>) {
        let mut points = std::mem::take(&mut self.points);
        self.each(view, request, pinned, |index, goodness| {
            if let Some(slot) = points.get_mut(index) {
                *slot = goodness.points;
            }
        });
        self.points = points;
    }

    /// Looks at every node that the request may go to, one by one.
    fn each(
        &mut self,
        view: &ClusterView,
        request: &PodRequest,
        pinned: Option<&str>,
        mut found: impl FnMut(usize, Goodness),
    ) {
        let Self { compiled, evaluator, .. } = self;
        let anywhere = pinned.is_none() && request.topology.terms.is_empty();
        if anywhere && compiled.lvm && !request.claims.is_empty() && compiled.columns.len() <= MOST_COLUMNS {
            // From the columns, so that the nodes themselves are never touched.
            for number in 0..view.slots().div_ceil(PAGE) {
                let mut lanes = Lanes { columns: &compiled.columns, pages: [None; MOST_COLUMNS], lane: 0 };
                for (page, column) in lanes.pages.iter_mut().zip(&compiled.columns) {
                    *page = view.columns().get(*column).and_then(|column| column.page(number));
                }
                for lane in 0..PAGE {
                    lanes.lane = lane;
                    if let Some(goodness) = evaluator.evaluate(compiled, &lanes) {
                        found(number * PAGE + lane, goodness);
                    }
                }
            }
            return;
        }
        let mut look = |index: usize, node: &Node| {
            if request.topology.allows(&node.labels)
                && let Some(goodness) = Some(node).filter(|n| n.ready).and_then(|n| evaluator.evaluate(compiled, n))
            {
                found(index, goodness);
            }
        };
        match pinned {
            Some(name) => {
                if let Some((index, node)) = view.index(name).and_then(|i| Some((i, view.node(i)?))) {
                    look(index, node);
                }
            }
            None => view.nodes().for_each(|(index, node)| look(index, node)),
        }
    }

    /// Looks at one node for the request that was prepared.
    pub(crate) fn look(&mut self, node: &Node) -> Option<Goodness> {
        if node.ready { self.evaluator.evaluate(&self.compiled, node) } else { None }
    }

    /// The best node by exact bytes: the highest votes, ties to the first clockwise from the request.
    pub(crate) fn best(
        &mut self,
        view: &ClusterView,
        request: &PodRequest,
        strategy: Strategy,
    ) -> Result<Option<usize>, RequestError> {
        let pinned = self.prepare(view, request, strategy)?;
        if self.compiled.nowhere.is_some() {
            return Ok(None);
        }
        let mut best = Best::new(self.compiled.ring);
        if pinned.is_none() && self.compiled.simple && request.topology.terms.is_empty() && !request.claims.is_empty() {
            for number in 0..view.slots().div_ceil(PAGE) {
                vote_page(&self.compiled, view, number, &mut best);
            }
            return Ok(best.node());
        }
        let ring = |index| view.node(index).map_or(0, |node| node.ring);
        self.each(view, request, pinned, |index, goodness| best.consider(goodness.votes, index, || ring(index)));
        Ok(best.node())
    }

    /// Validates the request and makes it ready; the node that it is pinned to.
    pub(crate) fn prepare<'r>(
        &mut self,
        view: &ClusterView,
        request: &'r PodRequest,
        strategy: Strategy,
    ) -> Result<Option<&'r str>, RequestError> {
        request.validate()?;
        self.compiled.compile(view, request, strategy);
        request.pinned()
    }
}

/// How many columns are read side by side; with more, nodes are looked at one by one.
const MOST_COLUMNS: usize = 16;

/// One node's groups, read from the columns.
struct Lanes<'a> {
    columns: &'a [usize],
    pages: [Option<&'a GroupPage>; MOST_COLUMNS],
    lane: usize,
}

impl Groups for Lanes<'_> {
    fn len(&self) -> usize {
        self.columns.len()
    }

    fn column(&self, g: usize) -> usize {
        self.columns.get(g).copied().unwrap_or(usize::MAX)
    }

    fn row(&self, g: usize) -> Row {
        self.pages.get(g).copied().flatten().map(|page| page.row(self.lane)).unwrap_or_default()
    }

    fn disks(&self, _: usize) -> Option<&[FreeDisk]> {
        None
    }
}

/// The best node so far.
pub(crate) struct Best {
    ring: u64,
    best: Option<(i128, u64, usize)>,
}

impl Best {
    pub fn new(ring: u64) -> Self {
        Self { ring, best: None }
    }

    /// The votes of the best so far.
    pub fn votes(&self) -> Option<i128> {
        self.best.map(|(votes, _, _)| votes)
    }

    pub fn node(&self) -> Option<usize> {
        self.best.map(|(_, _, node)| node)
    }

    pub fn consider(&mut self, votes: i128, index: usize, ring: impl FnOnce() -> u64) {
        if self.best.is_some_and(|(known, _, _)| votes < known) {
            return;
        }
        let distance = tie::distance(self.ring, ring());
        if self.best.is_none_or(|(known, nearest, _)| votes > known || distance < nearest) {
            self.best = Some((votes, distance, index));
        }
    }
}

/// The group pages of one range of nodes, a fixed column each.
fn pages<'a>(
    compiled: &'a Compiled,
    view: &'a ClusterView,
    number: usize,
) -> impl Iterator<Item = Option<(usize, &'a Weights, &'a GroupPage)>> {
    compiled.fixed.iter().enumerate().map(move |(f, fixed)| {
        let page = view.columns().get(fixed.column)?.page(number)?;
        Some((f, &fixed.weights, page))
    })
}

/// Writes the points of the nodes of one page: of a request whose claims have one column each.
fn score_page(compiled: &Compiled, view: &ClusterView, number: usize, lanes: &mut [u32]) {
    let mut fits = [true; PAGE];
    let mut sums = [0_u32; PAGE];
    for page in pages(compiled, view, number) {
        let Some((fixed, weights, page)) = page else { return };
        match page.uniform {
            Some(extent) => {
                let need = compiled.need(fixed, extent);
                score_lanes(page, |_| need, weights, &mut fits, &mut sums);
            }
            None => score_lanes(page, |extent| compiled.need(fixed, extent), weights, &mut fits, &mut sums),
        }
    }
    for ((lane, fits), sum) in lanes.iter_mut().zip(fits).zip(sums) {
        *lane = if fits { sum } else { REJECTED };
    }
}

#[inline]
fn score_lanes(
    page: &GroupPage,
    need: impl Fn(u32) -> Need,
    weights: &Weights,
    fits: &mut [bool; PAGE],
    sums: &mut [u32; PAGE],
) {
    for lane in 0..PAGE {
        let need = need(page.extent[lane]);
        let footprint = need.footprint(page.spare[lane]);
        fits[lane] &= need.size <= page.promise[lane] && footprint <= page.room[lane] && need.count <= page.slots[lane];
        let points = points(weights, need.size, page.promise[lane].min(page.room[lane]));
        sums[lane] = sums[lane].wrapping_add(points);
    }
}

/// Considers the nodes of one page for the best.
fn vote_page(compiled: &Compiled, view: &ClusterView, number: usize, best: &mut Best) {
    let mut fits = [true; PAGE];
    let mut sums = [0_i128; PAGE];
    for page in pages(compiled, view, number) {
        let Some((fixed, weights, page)) = page else { return };
        for lane in 0..PAGE {
            let need = compiled.need(fixed, page.uniform.unwrap_or(page.extent[lane]));
            let (promise, room) = (page.promise[lane], page.room[lane]);
            let footprint = need.footprint(page.spare[lane]);
            fits[lane] &= need.size <= promise && footprint <= room && need.count <= page.slots[lane];
            if fits[lane] {
                let after = (promise - need.size).min(room - footprint);
                sums[lane] += votes(weights, promise.min(room), after);
            }
        }
    }
    for (lane, sum) in sums.into_iter().enumerate().filter(|(lane, _)| fits[*lane]) {
        let index = number * PAGE + lane;
        best.consider(sum, index, || view.node(index).map_or(0, |node| node.ring));
    }
}
