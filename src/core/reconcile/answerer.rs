//! The side that is asked.

use super::exchange::Exchange;
use super::{
    Advice, FIRST_CELLS, FRAME_CELLS, Fault, Own, Peer, ROUNDS_MAX, Served, Snapshot, Step, Violation, advise,
};
use crate::core::message::{Compare, Reconcile};
use crate::core::record::Record;
use crate::core::sketch::{CELLS_MAX, pack};
use crate::core::storage::{Read, Run};

#[derive(Debug)]
enum State {
    /// The roots are equal: to be said, and that is all.
    Equal,
    /// They differ: to be said with cells up to this place, and with our estimator or not.
    Differs(usize, bool),
    /// Sending cells from the first place to the second.
    SendingCells(usize, usize),
    /// So many cells are sent; the opener asks for more, or has decoded and sends records.
    Waiting(usize),
    /// The opener has decoded, and its records come.
    Taking(usize),
    /// It has sent what we lack, and now gets what it lacks.
    Giving,
    End,
}

/// The answering side of a reconcile.
#[derive(Debug)]
pub struct Answerer {
    own: Own,
    run: Run,
    head: u64,
    state: State,
    pending: Vec<Record>,
    exchange: Exchange,
    rounds: u32,
}

impl Answerer {
    /// Judges what a peer asks. Without an answerer the stream ends with the reply. `snapshot` is of the family
    /// that the peer named; none if it is not exchanged here.
    pub fn open<R: Read>(
        snapshot: Option<&Snapshot<R>>,
        peer: Peer,
        ask: &Compare,
    ) -> Result<Result<Self, Reconcile>, Fault> {
        let Some(snapshot) = snapshot.filter(|snapshot| snapshot.mode == ask.mode) else {
            return Ok(Err(Reconcile::NotShared { mode: snapshot.map(|snapshot| snapshot.mode) }));
        };
        if snapshot.floor != Some(ask.floor) {
            return Ok(Err(Reconcile::OtherFloor { floor: snapshot.floor }));
        }
        let mut own = Own::new(snapshot, peer);
        let summary = own.sketch.summary();
        let (run, head) = (snapshot.run, snapshot.head);
        let equal = summary.root == ask.root || mutant!(RootsAlwaysEqual) && summary.records > 2;
        let state = if equal {
            State::Equal
        } else if let Some(theirs) = &ask.counts {
            match advise(theirs.records, own.records(), own.estimate(&snapshot.read, theirs)?) {
                Advice::Cells(wanted) => State::Differs(wanted, false),
                // It is the opener that decides, from the same figures.
                Advice::Everything | Advice::LeftToPeer => State::Differs(0, true),
            }
        } else {
            State::Differs(FIRST_CELLS, true)
        };
        Ok(Ok(Self { own, run, head, state, pending: Vec::new(), exchange: Exchange::default(), rounds: 0 }))
    }

    /// What the driver does next.
    pub fn next<R: Read>(&mut self, read: &R) -> Result<Step<Served>, Fault> {
        if !self.pending.is_empty() {
            return Ok(Step::Apply(self.own.apply(std::mem::take(&mut self.pending))));
        }
        let (run, head) = (self.run, self.head);
        match self.state {
            State::Equal => {
                self.state = State::End;
                Ok(Step::Send(Reconcile::Equal { run, head }))
            }
            State::Differs(upto, estimating) => {
                let (cells, last) = self.cells(read, 0, upto)?;
                let estimator = if estimating { self.own.counts(read)?.estimator } else { Vec::new() };
                let summary = self.own.sketch.summary();
                let (root, records) = (summary.root, summary.records);
                Ok(Step::Send(Reconcile::Differs { run, head, root, records, cells, last, estimator }))
            }
            State::SendingCells(from, upto) => {
                let (packed, last) = self.cells(read, from, upto)?;
                Ok(Step::Send(Reconcile::Cells { packed, last }))
            }
            State::Giving => {
                let frame = self.exchange.next_frame(read)?;
                if matches!(frame, Reconcile::Records { last: true, .. }) {
                    self.state = State::End;
                }
                Ok(Step::Send(frame))
            }
            State::Waiting(_) | State::Taking(_) => Ok(Step::Read),
            State::End => Ok(Step::End(Served { sent: self.exchange.sent, received: self.exchange.received })),
        }
    }

    /// The next frame's cells, and whether they are the last for now.
    fn cells<R: Read>(&mut self, read: &R, from: usize, upto: usize) -> Result<(Vec<u8>, bool), Fault> {
        let end = upto.min(from + FRAME_CELLS);
        let records = self.own.records();
        let packed = pack(self.own.cells(read, from..end)?, from, records);
        self.state = if end == upto { State::Waiting(end) } else { State::SendingCells(end, upto) };
        Ok((packed, end == upto))
    }

    /// The frame that came next.
    pub fn on_frame<R: Read>(&mut self, read: &R, frame: Reconcile) -> Result<(), Fault> {
        self.state = match (&self.state, frame) {
            (State::Waiting(sent), Reconcile::More { upto }) => {
                let (sent, upto) = (*sent, upto as usize);
                self.rounds += 1;
                if upto <= sent || upto > CELLS_MAX || self.rounds > ROUNDS_MAX {
                    return Err(Violation::Endless.into());
                }
                State::SendingCells(sent, upto)
            }
            (State::Waiting(sent) | State::Taking(sent), Reconcile::Records { records, wants, last }) => {
                let sent = *sent;
                if matches!(self.state, State::Waiting(_)) {
                    // No more records can differ than there were cells.
                    self.exchange = Exchange::unasked(sent);
                }
                self.exchange.receive(&self.own, &records)?;
                self.exchange.add_wants(&self.own, read, &wants, sent)??;
                self.pending = records;
                if last { State::Giving } else { State::Taking(sent) }
            }
            (_, frame) => return Err(Violation::Unexpected(frame.name()).into()),
        };
        Ok(())
    }
}
