//! Upstream's executor: no watch, so it is asked every second; no `uid`, so that the name alone tells
//! tasks apart (upstream.md 5.1).

use bytes::Bytes;
use opensandbox_api::token::Request;
use tokio::sync::watch;
use tokio::time::sleep;

use super::Order;
use super::connection;
use super::conversation::{ANSWER, Conversation, another, within};
use super::fault::Fault;
use super::lanes::Permit;
use super::list;
use super::sessions::Numbered;

const TARGET: &str = "/getTasks";

impl Conversation {
    /// Orders, if there is something to be ordered, or asks; then waits until it is time to ask again, or
    /// there is another order.
    pub(super) async fn poll(
        &mut self,
        order: &Order,
        orders: &mut watch::Receiver<Numbered>,
        permit: Permit,
    ) -> Result<(), Fault> {
        let mut connection = tokio::select! {
            opened = self.open(order) => opened?,
            () = another(orders) => return Ok(()),
        };
        if self.is_open(&order.work) {
            self.give(order, &mut connection).await?;
        } else {
            let request = Request {
                pod_uid: &order.pod_uid,
                method: "GET",
                target: TARGET,
            };
            let leave = self.shared.credentials.leave(self.key, &request, b"")?;
            let limit = self.shared.settings.order;
            let answer = async {
                let response = connection.ask("GET", TARGET, Bytes::new(), &leave).await?;
                connection::read(response, ANSWER, &self.shared.memory).await
            };
            let answer = within(limit, answer).await?;
            self.hear(list::read(&answer)?, order);
        }
        drop((permit, connection));
        if self.is_settled(&order.work) {
            return Ok(());
        }
        tokio::select! {
            () = sleep(self.shared.settings.poll) => {}
            () = another(orders) => {}
        }
        Ok(())
    }
}
