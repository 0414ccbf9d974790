//! Reading request bodies into memory, with a bound on one and a bound on all.
//!
//! In: a body as it arrives. Out: its bytes together with the reservation that counts them, or a
//! [`Rejection`]. Memory is reserved before it is used, so that many large bodies at once wait,
//! and then fail, instead of growing the process. Needs no client; knows nothing of routes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Body;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::rejection::Rejection;

/// The first reservation of a body that does not say how long it is; doubled when full.
const CHUNKED_START: u32 = 16 * 1024;

/// Bytes that all bodies in flight may take together.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    bytes: Arc<Semaphore>,
    total: u32,
    wait: Duration,
    gauge: Gauge,
}

impl Budget {
    /// `total` bytes; a reservation waits for at most `wait`.
    pub(super) fn new(total: u32, wait: Duration, gauge: Gauge) -> Self {
        Self {
            bytes: Arc::new(Semaphore::new(total as usize)),
            total,
            wait,
            gauge,
        }
    }

    async fn reserve(&self, bytes: u32) -> Result<Reservation, Rejection> {
        let free = Arc::clone(&self.bytes).try_acquire_many_owned(bytes);
        let permit = if let Ok(permit) = free {
            permit
        } else {
            let acquire = Arc::clone(&self.bytes).acquire_many_owned(bytes);
            tokio::time::timeout(self.wait, acquire)
                .await
                .map_err(|_| Rejection::Busy)?
                .expect("the semaphore of the budget is never closed")
        };
        self.gauge.inc_by(i64::from(bytes));
        Ok(Reservation {
            permit,
            gauge: self.gauge.clone(),
        })
    }
}

/// A part of the [`Budget`], given back on drop.
#[derive(Debug)]
pub(super) struct Reservation {
    permit: OwnedSemaphorePermit,
    gauge: Gauge,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let bytes = i64::try_from(self.permit.num_permits()).unwrap_or(i64::MAX);
        self.gauge.dec_by(bytes);
    }
}

/// A whole body, and the memory it is counted with; keep both together.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) bytes: Bytes,
    pub(super) reservations: Vec<Reservation>,
}

/// Reads `body` to its end if it is not longer than `limit` bytes.
///
/// # Errors
/// [`Rejection::TooLarge`], at once when the announced length says so; [`Rejection::Busy`] when
/// the budget had no room in time; [`Rejection::Truncated`] when the stream broke.
pub(super) async fn read<B>(body: &mut B, limit: u32, budget: &Budget) -> Result<Held, Rejection>
where
    B: Body<Data = Bytes> + Unpin,
{
    if body.size_hint().lower() > u64::from(limit) {
        return Err(Rejection::TooLarge);
    }
    match body.size_hint().exact().map(u32::try_from) {
        Some(Ok(length)) => read_announced(body, length, budget).await,
        Some(Err(_)) => Err(Rejection::TooLarge),
        None => read_chunked(body, limit, budget).await,
    }
}

async fn read_announced<B>(body: &mut B, length: u32, budget: &Budget) -> Result<Held, Rejection>
where
    B: Body<Data = Bytes> + Unpin,
{
    if length == 0 {
        return Ok(Held {
            bytes: Bytes::new(),
            reservations: Vec::new(),
        });
    }
    // A body larger than the whole budget gets all of it; it would wait for ever otherwise.
    let reservation = budget.reserve(length.min(budget.total)).await?;
    let length = length as usize;
    let mut collected = Vec::new();
    while let Some(data) = next_data(body).await? {
        if collected.is_empty() {
            if data.len() == length {
                // The usual case: the review came with one read and needs no copy.
                return Ok(Held {
                    bytes: data,
                    reservations: vec![reservation],
                });
            }
            collected.reserve_exact(length);
        }
        collected.extend_from_slice(&data);
        if collected.len() == length {
            return Ok(Held {
                bytes: Bytes::from(collected),
                reservations: vec![reservation],
            });
        }
    }
    Err(Rejection::Truncated)
}

async fn read_chunked<B>(body: &mut B, limit: u32, budget: &Budget) -> Result<Held, Rejection>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut collected: Vec<u8> = Vec::new();
    let mut reservations = Vec::new();
    let mut reserved = 0_u32;
    while let Some(data) = next_data(body).await? {
        let needed = collected.len() + data.len();
        let needed = u32::try_from(needed).map_err(|_| Rejection::TooLarge)?;
        if needed > limit {
            return Err(Rejection::TooLarge);
        }
        if needed > reserved {
            let grown = reserved.saturating_mul(2).max(CHUNKED_START).min(limit);
            let grown = grown.max(needed);
            let part = grown.min(budget.total) - reserved.min(budget.total);
            reservations.push(budget.reserve(part).await?);
            reserved = grown;
            collected.reserve_exact(reserved as usize - collected.len());
        }
        collected.extend_from_slice(&data);
    }
    Ok(Held {
        bytes: Bytes::from(collected),
        reservations,
    })
}

/// The next piece of data; trailers are passed over.
async fn next_data<B>(body: &mut B) -> Result<Option<Bytes>, Rejection>
where
    B: Body<Data = Bytes> + Unpin,
{
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(|_| Rejection::Truncated)?.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// Reads up to `most` bytes and forgets them; whether the body came to its end.
///
/// A peer that is still sending when its connection is closed is told so by a reset, which can
/// destroy the answer before it is read. So what is left of a refused body is taken off the wire
/// first, within bounds.
pub(super) async fn discard<B>(body: &mut B, most: u64) -> bool
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut left = most;
    loop {
        match next_data(body).await {
            Ok(Some(data)) => match left.checked_sub(data.len() as u64) {
                Some(rest) => left = rest,
                None => return false,
            },
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::stream;
    use http_body_util::{Full, StreamBody};
    use hyper::body::Frame;

    use super::*;

    const LIMIT: u32 = 100 * 1024;

    fn budget(total: u32) -> Budget {
        Budget::new(total, Duration::from_secs(2), Gauge::default())
    }

    fn chunked(sizes: &[usize]) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        let frames: Vec<_> = sizes
            .iter()
            .map(|size| Ok(Frame::data(Bytes::from(vec![b'x'; *size]))))
            .collect();
        StreamBody::new(stream::iter(frames))
    }

    #[tokio::test]
    async fn announced_body_in_one_piece_is_not_copied() {
        let sent = Bytes::from(vec![b'x'; 10 * 1024]);
        let budget = budget(64 * 1024);
        let held = read(&mut Full::new(sent.clone()), LIMIT, &budget)
            .await
            .unwrap();
        assert_eq!(held.bytes.as_ptr(), sent.as_ptr());
        assert_eq!(budget.gauge.get(), 10 * 1024);
        drop(held);
        assert_eq!(budget.gauge.get(), 0);
        assert_eq!(budget.bytes.available_permits(), 64 * 1024);
    }

    #[tokio::test]
    async fn announced_body_above_the_limit_is_refused_unread() {
        let mut body = Full::new(Bytes::from(vec![0; LIMIT as usize + 1]));
        let refused = read(&mut body, LIMIT, &budget(1)).await.unwrap_err();
        assert_eq!(refused, Rejection::TooLarge);
        assert!(!body.is_end_stream());
    }

    #[tokio::test]
    async fn chunked_body_is_counted_by_what_is_allocated() {
        let budget = budget(256 * 1024);
        let held = read(&mut chunked(&[1, 16 * 1024, 5]), LIMIT, &budget)
            .await
            .unwrap();
        assert_eq!(held.bytes.len(), 16 * 1024 + 6);
        assert_eq!(budget.gauge.get(), 32 * 1024);
        drop(held);
        assert_eq!(budget.bytes.available_permits(), 256 * 1024);
    }

    #[tokio::test]
    async fn chunked_body_of_exactly_the_limit_is_read_and_one_more_byte_is_not() {
        let limit = LIMIT as usize;
        let budget = budget(256 * 1024);
        let held = read(&mut chunked(&[limit - 1, 1]), LIMIT, &budget).await;
        assert_eq!(held.unwrap().bytes.len(), limit);
        let refused = read(&mut chunked(&[limit, 1]), LIMIT, &budget).await;
        assert_eq!(refused.unwrap_err(), Rejection::TooLarge);
        assert_eq!(budget.gauge.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn full_budget_is_waited_for_and_then_refused() {
        let budget = budget(20 * 1024);
        let first = read(&mut Full::new(Bytes::from(vec![0; 15_000])), LIMIT, &budget)
            .await
            .unwrap();
        let mut second = Full::new(Bytes::from(vec![0; 15_000]));
        let refused = read(&mut second, LIMIT, &budget).await.unwrap_err();
        assert_eq!(refused, Rejection::Busy);
        let waiting = read(&mut second, LIMIT, &budget);
        tokio::pin!(waiting);
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        drop(first);
        assert_eq!(waiting.await.unwrap().bytes.len(), 15_000);
    }

    #[tokio::test(start_paused = true)]
    async fn body_larger_than_the_whole_budget_gets_all_of_it() {
        let budget = budget(1024);
        for _ in 0..2 {
            let mut announced = Full::new(Bytes::from(vec![0; 5000]));
            let held = read(&mut announced, LIMIT, &budget).await.unwrap();
            assert_eq!(budget.gauge.get(), 1024);
            drop(held);
            let mut unannounced = chunked(&[5000, 50_000]);
            let held = read(&mut unannounced, LIMIT, &budget).await.unwrap();
            assert_eq!((held.bytes.len(), budget.gauge.get()), (55_000, 1024));
        }
        assert_eq!(budget.gauge.get(), 0);
    }

    #[tokio::test]
    async fn discarding_stops_at_its_bound() {
        assert!(discard(&mut chunked(&[5, 5]), 10).await);
        assert!(!discard(&mut chunked(&[5, 6]), 10).await);
    }
}
