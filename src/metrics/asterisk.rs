//! The metrics of attached Asterisks.

use std::collections::BTreeMap;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::{Gauges, raise, signed};
use crate::status::AdapterStatus;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct AsteriskLabel {
    asterisk: String,
}

/// The asterisk is empty where a message concerned none.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct AsteriskReasonLabel {
    asterisk: String,
    reason: String,
}

/// Of each attached Asterisk.
#[derive(Default)]
pub(super) struct AsteriskMetrics {
    reachable: Gauges<AsteriskLabel>,
    in_flight: Gauges<AsteriskLabel>,
    lag_entries: Gauges<AsteriskLabel>,
    accepted: Family<AsteriskLabel, Counter>,
    written: Family<AsteriskLabel, Counter>,
    delivered: Family<AsteriskLabel, Counter>,
    failed: Family<AsteriskLabel, Counter>,
    undeliverable: Family<AsteriskLabel, Counter>,
    restarts: Family<AsteriskLabel, Counter>,
    refused: Family<AsteriskReasonLabel, Counter>,
}

impl AsteriskMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("asterisk");
        let help = "1 if the last thing that was sent to an attached Asterisk was answered";
        registry.register("reachable", help, self.reachable.clone());
        let help = "Entries of the message to an attached Asterisk that waits for its answer";
        registry.register("in_flight", help, self.in_flight.clone());
        registry.register("lag_entries", "Changes that an attached Asterisk has not got yet", self.lag_entries.clone());
        registry.register("accepted", "PUBLISHes of an attached Asterisk answered 200", self.accepted.clone());
        registry.register("written", "Entries of an attached Asterisk that became writes", self.written.clone());
        registry.register("delivered", "Entries that an attached Asterisk took", self.delivered.clone());
        registry.register("failed", "Messages that an attached Asterisk did not take", self.failed.clone());
        registry.register("undeliverable", "Entries too long for an attached Asterisk", self.undeliverable.clone());
        registry.register("restarts", "How often an attached Asterisk was found restarted", self.restarts.clone());
        registry.register("refused", "SIP messages and entries refused, by reason", self.refused.clone());
    }

    pub(super) fn set(&self, adapter: &AdapterStatus) {
        for one in &adapter.asterisks {
            let label = AsteriskLabel { asterisk: one.name.clone() };
            self.reachable.get_or_create(&label).set(i64::from(one.reachable));
            self.in_flight.get_or_create(&label).set(signed(one.in_flight));
            self.lag_entries.get_or_create(&label).set(signed(one.lag_entries));
            for (counters, count) in [
                (&self.accepted, one.accepted),
                (&self.written, one.written),
                (&self.delivered, one.delivered_entries),
                (&self.failed, one.failed),
                (&self.undeliverable, one.undeliverable),
                (&self.restarts, one.restarts),
            ] {
                raise(&counters.get_or_create(&label), count);
            }
            self.set_refused(&one.name, &one.refused);
        }
        self.set_refused("", &adapter.refused);
    }

    fn set_refused(&self, asterisk: &str, refused: &BTreeMap<String, u64>) {
        for (reason, count) in refused {
            let label = AsteriskReasonLabel { asterisk: asterisk.to_string(), reason: reason.clone() };
            raise(&self.refused.get_or_create(&label), *count);
        }
    }
}
