//! The side that asks.

use super::exchange::Exchange;
use super::{CELL_BYTES, Ended, FRAME_CELLS, Fault, Own, Peer, RECORD_BYTES, ROUNDS_MAX, Snapshot, Step, Violation};
use crate::core::clock::Hlc;
use crate::core::message::{Compare, Reconcile};
use crate::core::record::Record;
use crate::core::sketch::{CELLS_MAX, Decoder, ESTIMATE_CELLS, Root, Summary, cells_wanted, estimate, pack, unpack};
use crate::core::storage::{Read, Run};

#[derive(Debug)]
enum State {
    Fresh,
    Asked,
    /// Sending cells from the first place to the second.
    SendingCells(usize, usize),
    CellsSent(usize),
    /// We have decoded, and send what the peer lacks and what we lack.
    Telling,
    /// We have told; the records that we lack come.
    Fetching,
    /// The peer has decoded, and its records came last.
    Answering,
    Answered,
    End(Ended),
}

/// The opening side of a reconcile.
#[derive(Debug)]
pub struct Opener {
    own: Own,
    floor: Hlc,
    state: State,
    /// Records that came and are to be applied before anything else.
    pending: Vec<Record>,
    exchange: Exchange,
    compared: Option<(Run, u64)>,
    rounds: u32,
}

impl Opener {
    pub fn new<R: Read>(snapshot: &Snapshot<R>, peer: Peer) -> Self {
        Self {
            own: Own::new(snapshot, peer),
            floor: snapshot.floor,
            state: State::Fresh,
            pending: Vec::new(),
            exchange: Exchange::default(),
            compared: None,
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
                self.state = State::Asked;
                let root = self.own.sketch.summary().root;
                let (family, mode) = (self.own.family.clone(), self.own.mode);
                Ok(Step::Ask(Compare { family, mode, floor: self.floor, root }))
            }
            State::SendingCells(from, upto) => {
                let (from, upto) = (*from, *upto);
                let end = upto.min(from + FRAME_CELLS);
                let records = self.own.sketch.summary().records;
                let packed = pack(self.own.cells(read, from..end)?, from, records);
                let last = end == upto;
                self.state = if last { State::CellsSent(end) } else { State::SendingCells(end, upto) };
                Ok(Step::Send(Reconcile::Cells { records, packed, last }))
            }
            State::Telling | State::Answering => {
                let frame = self.exchange.next_frame(read)?;
                if matches!(frame, Reconcile::Records { last: true, .. }) {
                    self.state = if matches!(self.state, State::Telling) { State::Fetching } else { State::Answered };
                }
                Ok(Step::Send(frame))
            }
            State::Asked | State::CellsSent(_) | State::Fetching | State::Answered => Ok(Step::Read),
            State::End(ended) => Ok(Step::End(ended.clone())),
        }
    }

    /// The frame that came next.
    pub fn on_frame<R: Read>(&mut self, read: &R, frame: Reconcile) -> Result<(), Fault> {
        let next = match (&self.state, frame) {
            (State::Asked, Reconcile::Equal { run, head }) => State::End(Ended::Equal { run, head }),
            (State::Asked, Reconcile::NotShared { mode }) => State::End(Ended::NotShared { mode }),
            (State::Asked, Reconcile::OtherFloor { floor }) => State::End(Ended::OtherFloor { floor }),
            (State::Asked, Reconcile::Busy) => State::End(Ended::Busy),
            (State::Asked, Reconcile::Differs { run, head, root, records, cells, estimator }) => {
                self.compared = Some((run, head));
                self.on_differs(read, Summary { root, records }, &cells, &estimator)?
            }
            (State::CellsSent(sent), Reconcile::More { upto }) => {
                let (sent, upto) = (*sent, upto as usize);
                self.rounds += 1;
                if upto <= sent || upto > CELLS_MAX || self.rounds > ROUNDS_MAX {
                    return Err(Violation::Endless.into());
                }
                State::SendingCells(sent, upto)
            }
            (State::CellsSent(_), Reconcile::Everything) => State::End(Ended::Everything),
            (State::CellsSent(sent), Reconcile::Records { records, wants, last }) => {
                let sent = *sent;
                if self.exchange.received == 0 {
                    // The peer has decoded: no more records can differ than there were cells.
                    self.exchange.unasked = sent;
                }
                self.take(records)?;
                self.exchange.add_wants(&self.own, read, &wants)??;
                if last { State::Answering } else { State::CellsSent(sent) }
            }
            (State::Fetching, Reconcile::Records { records, wants, last }) if wants.is_empty() => {
                self.take(records)?;
                if last {
                    self.exchange.complete()?;
                    self.reconciled()
                } else {
                    State::Fetching
                }
            }
            (State::Answered, Reconcile::Settled) => self.reconciled(),
            (_, frame) => return Err(Violation::Unexpected(frame.name()).into()),
        };
        self.state = next;
        Ok(())
    }

    fn take(&mut self, records: Vec<Record>) -> Result<(), Violation> {
        self.exchange.receive(&self.own, &records)?;
        self.pending = records;
        Ok(())
    }

    fn reconciled(&self) -> State {
        let (run, head) = self.compared.expect("nothing is exchanged before the peer has answered");
        let Exchange { sent, received, .. } = self.exchange;
        State::End(Ended::Reconciled { run, head, sent, received })
    }

    fn on_differs<R: Read>(
        &mut self,
        read: &R,
        theirs: Summary,
        cells: &[u8],
        estimator: &[u8],
    ) -> Result<State, Fault> {
        let ours = self.own.sketch.summary();
        let first = unpack(cells, 0, theirs.records)?;
        let mut decoder = Decoder::new(self.own.sketch.key());
        decoder.push(self.own.cells(read, 0..first.len())?, &first)?;
        let found = self.decoded(read, &decoder, theirs.root)?;
        if found {
            return Ok(State::Telling);
        }
        let own_cells = self.own.cells(read, 0..ESTIMATE_CELLS.end)?;
        let differing = estimate(own_cells, ours.records, estimator, theirs.records)?;
        let wanted = cells_wanted(differing);
        // Theirs less ours is known, and their sum is estimated.
        let lacking = (differing + theirs.records).saturating_sub(ours.records) / 2;
        let lacking = lacking.min(theirs.records);
        let needless = theirs.records - lacking;
        let dear = wanted as u64 * CELL_BYTES > needless * RECORD_BYTES;
        if wanted > CELLS_MAX || dear || ours.records == 0 {
            let little = lacking < differing / 16 || theirs.records == 0;
            return Ok(State::End(if little { Ended::LeftToPeer } else { Ended::Everything }));
        }
        Ok(State::SendingCells(0, wanted))
    }

    /// Plans the exchange if the cells so far have given away all that differs.
    fn decoded<R: Read>(&mut self, read: &R, decoder: &Decoder, theirs: Root) -> Result<bool, Fault> {
        let Some(differences) = decoder.differences(self.own.sketch.summary().root, theirs)? else { return Ok(false) };
        self.exchange = Exchange::plan(&self.own, read, differences)?;
        Ok(true)
    }
}
