//! The side that asks.

use super::exchange::Exchange;
use super::{Advice, Ended, Fault, Own, Peer, ROUNDS_MAX, Snapshot, Step, Violation, advise};
use crate::core::message::{Compare, Counts, Reconcile};
use crate::core::record::Record;
use crate::core::sketch::{CELLS_MAX, Decoder, Root, Summary, unpack};
use crate::core::storage::{Read, Run};

#[derive(Debug)]
enum State {
    Fresh,
    Asked,
    /// The peer's cells come.
    Receiving,
    /// They do not decode: up to so many are to be asked for.
    Asking(usize),
    /// We have decoded, and send what the peer lacks and what we lack.
    Telling,
    /// We have told; the records that we lack come, and with the last one all is durable over there.
    Fetching,
    End(Ended),
}

/// What the peer said of its side when the roots differed.
#[derive(Debug)]
struct Theirs {
    run: Run,
    head: u64,
    summary: Summary,
    /// Empty where the peer has estimated.
    estimator: Vec<u8>,
}

/// The opening side of a reconcile.
#[derive(Debug)]
pub struct Opener {
    own: Own,
    state: State,
    /// The peer is thought to differ.
    expects_difference: bool,
    /// Records that came and are to be applied before anything else.
    pending: Vec<Record>,
    decoder: Decoder,
    exchange: Exchange,
    theirs: Option<Theirs>,
    rounds: u32,
}

impl Opener {
    /// `heard` is the peer's root as it was last heard, if it was: where it differs from ours, the request brings what
    /// the peer needs to answer at once with enough cells.
    pub fn new<R: Read>(snapshot: &Snapshot<R>, peer: Peer, heard: Option<Root>) -> Self {
        let own = Own::new(snapshot, peer);
        let expects_difference = heard.is_some_and(|heard| heard != own.sketch.summary().root);
        let decoder = Decoder::new(own.sketch.key());
        Self {
            own,
            state: State::Fresh,
            expects_difference,
            pending: Vec::new(),
            decoder,
            exchange: Exchange::default(),
            theirs: None,
            rounds: 0,
        }
    }

    /// Whether something came that is to be applied before anything else.
    #[cfg(test)]
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// What the driver does next.
    pub fn next<R: Read>(&mut self, read: &R) -> Result<Step<Ended>, Fault> {
        if !self.pending.is_empty() {
            return Ok(Step::Apply(self.own.apply(std::mem::take(&mut self.pending))));
        }
        match &self.state {
            State::Fresh => {
                let Some(floor) = self.own.floor else {
                    return Ok(Step::End(Ended::OtherFloor { floor: None }));
                };
                self.state = State::Asked;
                let counts = if self.expects_difference { Some(self.own.counts(read)?) } else { None };
                let (family, mode) = (self.own.family.clone(), self.own.mode);
                let root = self.own.sketch.summary().root;
                Ok(Step::Ask(Compare { family, mode, floor, root, counts }))
            }
            State::Asking(upto) => {
                let upto = u32::try_from(*upto).expect("bounded by CELLS_MAX");
                self.state = State::Receiving;
                Ok(Step::Send(Reconcile::More { upto }))
            }
            State::Telling => {
                let frame = self.exchange.next_frame(read)?;
                if matches!(frame, Reconcile::Records { last: true, .. }) {
                    self.state = State::Fetching;
                }
                Ok(Step::Send(frame))
            }
            State::Asked | State::Receiving | State::Fetching => Ok(Step::Read),
            State::End(ended) => Ok(Step::End(ended.clone())),
        }
    }

    /// The frame that came next.
    pub fn on_frame<R: Read>(&mut self, read: &R, frame: Reconcile) -> Result<(), Fault> {
        self.state = match (&self.state, frame) {
            (State::Asked, Reconcile::Equal { run, head }) => State::End(Ended::Equal { run, head }),
            (State::Asked, Reconcile::NotShared { mode }) => State::End(Ended::NotShared { mode }),
            (State::Asked, Reconcile::OtherFloor { floor }) => State::End(Ended::OtherFloor { floor }),
            (State::Asked, Reconcile::Busy) => State::End(Ended::Busy),
            (State::Asked, Reconcile::Differs { run, head, root, records, cells, last, estimator }) => {
                self.theirs = Some(Theirs { run, head, summary: Summary { root, records }, estimator });
                self.on_cells(read, &cells, last)?
            }
            (State::Receiving, Reconcile::Cells { packed, last }) => self.on_cells(read, &packed, last)?,
            (State::Fetching, Reconcile::Records { records, wants, last }) if wants.is_empty() => {
                self.exchange.receive(&self.own, &records)?;
                self.pending = records;
                if last {
                    self.exchange.complete()?;
                    self.reconciled()
                } else {
                    State::Fetching
                }
            }
            (_, frame) => return Err(Violation::Unexpected(frame.name()).into()),
        };
        Ok(())
    }

    fn reconciled(&self) -> State {
        let &Theirs { run, head, .. } = self.theirs();
        let Exchange { sent, received, .. } = self.exchange;
        State::End(Ended::Reconciled { run, head, sent, received })
    }

    fn theirs(&self) -> &Theirs {
        self.theirs.as_ref().expect("cells and records come only after the peer has said that it differs")
    }

    fn on_cells<R: Read>(&mut self, read: &R, packed: &[u8], last: bool) -> Result<State, Fault> {
        let (from, Summary { root, records }) = (self.decoder.cells(), self.theirs().summary);
        let cells = unpack(packed, from, records)?;
        if cells.is_empty() && !last {
            return Err(Violation::Endless.into());
        }
        self.decoder.push(self.own.cells(read, from..from + cells.len())?, &cells)?;
        if !last {
            return Ok(State::Receiving);
        }
        let ours = self.own.sketch.summary().root;
        if let Some(differences) = self.decoder.differences(ours, root)? {
            self.exchange = Exchange::plan(&self.own, read, differences)?;
            return Ok(State::Telling);
        }
        self.ask_for_more(read)
    }

    fn ask_for_more<R: Read>(&mut self, read: &R) -> Result<State, Fault> {
        let seen = self.decoder.cells();
        self.rounds += 1;
        if seen >= CELLS_MAX || self.rounds > ROUNDS_MAX {
            return Ok(State::End(Ended::Everything));
        }
        let mut wanted = seen + seen / 4 + 16;
        let theirs = self.theirs.as_mut().expect("cells have come");
        let estimator = std::mem::take(&mut theirs.estimator);
        if !estimator.is_empty() {
            let theirs = Counts { records: theirs.summary.records, estimator };
            match advise(self.own.records(), theirs.records, self.own.estimate(read, &theirs)?) {
                Advice::Cells(advised) => wanted = advised.max(seen + 1),
                Advice::Everything => return Ok(State::End(Ended::Everything)),
                Advice::LeftToPeer => return Ok(State::End(Ended::LeftToPeer)),
            }
        }
        Ok(State::Asking(wanted.min(CELLS_MAX)))
    }
}
