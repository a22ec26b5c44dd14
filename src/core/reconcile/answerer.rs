//! The side that is asked.

use super::exchange::Exchange;
use super::{FIRST_CELLS, Fault, Own, Peer, ROUNDS_MAX, Served, Snapshot, Step, Violation};
use crate::core::message::{Compare, Reconcile};
use crate::core::record::Record;
use crate::core::sketch::{CELLS_MAX, Decoder, ESTIMATE_CELLS, Root, estimator, pack, unpack};
use crate::core::storage::Read;

#[derive(Debug)]
enum State {
    /// The answer is to be sent, and ends it or not.
    Answer(Box<Reconcile>, bool),
    /// The opener sends cells, or has decoded and sends records.
    Waiting,
    Asking(usize),
    /// We have decoded, and send what the opener lacks and what we lack.
    Telling,
    /// We have told; the records that we lack come.
    Fetching,
    /// The opener has decoded; it has sent what we lack, and now gets what it lacks.
    Giving,
    End,
}

/// The answering side of a reconcile.
#[derive(Debug)]
pub struct Answerer {
    own: Own,
    state: State,
    their_root: Root,
    decoder: Decoder,
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
        if snapshot.floor != ask.floor {
            return Ok(Err(Reconcile::OtherFloor { floor: snapshot.floor }));
        }
        let mut own = Own::new(snapshot, peer);
        let summary = own.sketch.summary();
        let (run, head) = (snapshot.run, snapshot.head);
        let equal = summary.root == ask.root || mutant!(RootsAlwaysEqual) && summary.records > 2;
        let answer = if equal {
            Reconcile::Equal { run, head }
        } else {
            let cells = own.cells(&snapshot.read, 0..ESTIMATE_CELLS.end)?;
            let (cells, estimator) = (pack(&cells[..FIRST_CELLS], 0, summary.records), estimator(cells));
            Reconcile::Differs { run, head, root: summary.root, records: summary.records, cells, estimator }
        };
        let decoder = Decoder::new(own.sketch.key());
        let exchange = Exchange::unasked(FIRST_CELLS);
        let state = State::Answer(Box::new(answer), equal);
        Ok(Ok(Self { own, state, their_root: ask.root, decoder, pending: Vec::new(), exchange, rounds: 0 }))
    }

    /// What the driver does next.
    pub fn next<R: Read>(&mut self, read: &R) -> Result<Step<Served>, Fault> {
        if !self.pending.is_empty() {
            return Ok(Step::Apply(self.own.apply(std::mem::take(&mut self.pending))));
        }
        match std::mem::replace(&mut self.state, State::End) {
            State::Answer(answer, ends) => {
                self.state = if ends { State::End } else { State::Waiting };
                Ok(Step::Send(*answer))
            }
            State::Asking(upto) => {
                self.state = State::Waiting;
                Ok(Step::Send(Reconcile::More { upto: upto as u32 }))
            }
            State::Telling => self.records(read, State::Telling, State::Fetching),
            State::Giving => self.records(read, State::Giving, State::End),
            state @ (State::Waiting | State::Fetching) => {
                self.state = state;
                Ok(Step::Read)
            }
            State::End => Ok(Step::End(Served { sent: self.exchange.sent, received: self.exchange.received })),
        }
    }

    fn records<R: Read>(&mut self, read: &R, same: State, after: State) -> Result<Step<Served>, Fault> {
        let frame = self.exchange.next_frame(read)?;
        let last = matches!(frame, Reconcile::Records { last: true, .. });
        self.state = if last { after } else { same };
        Ok(Step::Send(frame))
    }

    /// The frame that came next.
    pub fn on_frame<R: Read>(&mut self, read: &R, frame: Reconcile) -> Result<(), Fault> {
        let next = match (&self.state, frame) {
            (State::Waiting, Reconcile::Cells { records, packed, last }) => {
                self.exchange.unasked = 0;
                let from = self.decoder.cells();
                let theirs = unpack(&packed, from, records)?;
                self.decoder.push(self.own.cells(read, from..from + theirs.len())?, &theirs)?;
                if last { self.decode(read)? } else { State::Waiting }
            }
            (State::Waiting, Reconcile::Records { records, wants, last }) if self.decoder.cells() == 0 => {
                self.exchange.receive(&self.own, &records)?;
                if wants.len() > FIRST_CELLS {
                    return Err(Violation::Wants.into());
                }
                self.exchange.add_wants(&self.own, read, &wants)??;
                self.pending = records;
                if last { State::Giving } else { State::Waiting }
            }
            (State::Fetching, Reconcile::Records { records, wants, last }) if wants.is_empty() => {
                self.exchange.receive(&self.own, &records)?;
                self.pending = records;
                if last {
                    self.exchange.complete()?;
                    State::Answer(Box::new(Reconcile::Settled), true)
                } else {
                    State::Fetching
                }
            }
            (_, frame) => return Err(Violation::Unexpected(frame.name()).into()),
        };
        self.state = next;
        Ok(())
    }

    fn decode<R: Read>(&mut self, read: &R) -> Result<State, Fault> {
        let ours = self.own.sketch.summary().root;
        if let Some(differences) = self.decoder.differences(ours, self.their_root)? {
            self.exchange = Exchange::plan(&self.own, read, differences)?;
            return Ok(State::Telling);
        }
        self.rounds += 1;
        let seen = self.decoder.cells();
        if seen >= CELLS_MAX || self.rounds > ROUNDS_MAX {
            return Ok(State::Answer(Box::new(Reconcile::Everything), true));
        }
        Ok(State::Asking((seen + seen / 4 + 16).min(CELLS_MAX)))
    }
}
