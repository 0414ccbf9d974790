use super::*;

#[tokio::test(start_paused = true)]
async fn mail_comes_in_order_and_answers_come_as_mail() {
    let metrics = Arc::new(Metrics::default());
    let (mut address, mut mailbox) = Mailbox::<u32>::new(&metrics);
    address.send(1);
    address.send(2);
    assert_eq!(metrics.mailbox.get(), 2);
    mailbox.begin(std::future::ready(3_u32));
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let Next::Mail(mut batch) = mailbox.next(None).await else {
            panic!("there is no timer");
        };
        for mail in batch.drain(..) {
            seen.extend(mailbox.open(mail, &metrics));
        }
        mailbox.reuse(batch);
    }
    assert_eq!(seen, [1, 2, 3]);
    assert_eq!((mailbox.handled, mailbox.underway), (2, 0));
    assert_eq!(address.sent(), mailbox.handled);
    assert_eq!(metrics.mailbox.get(), 0);
    address.end();
    let Next::Mail(mut batch) = mailbox.next(None).await else {
        panic!("there is no timer");
    };
    let end = batch.pop().unwrap();
    assert_eq!(mailbox.open(end, &metrics), None);
}

#[tokio::test(start_paused = true)]
async fn a_timer_rings_when_nothing_comes() {
    let metrics = Arc::new(Metrics::default());
    let (_address, mut mailbox) = Mailbox::<u32>::new(&metrics);
    let then = Instant::now() + Duration::from_hours(1);
    assert!(matches!(mailbox.next(Some(then)).await, Next::Wake));
    assert!(Instant::now() >= then);
}

#[tokio::test(start_paused = true)]
async fn what_was_not_sent_is_answered_later_so_that_nobody_spins() {
    let began = Instant::now();
    let refused = answered(std::future::ready(Err::<(), _>(WriteError::Conflict))).await;
    assert_eq!(refused, Err(WriteError::Conflict));
    assert_eq!(began.elapsed(), Duration::ZERO);
    let fenced = answered(std::future::ready(Err::<(), _>(WriteError::Fenced))).await;
    assert_eq!(fenced, Err(WriteError::Fenced));
    assert!(began.elapsed() >= FENCED);
}

#[test]
fn a_panic_is_caught_and_counted() {
    let metrics = Metrics::default();
    assert_eq!(guarded("pool", &metrics, || 7), Some(7));
    let caught: Option<()> = guarded("pool", &metrics, || panic!("a bug, on purpose"));
    assert_eq!(caught, None);
    let text = metrics.encode().unwrap();
    assert!(text.contains(r#"actor_panics_total{kind="pool"} 1"#));
}

#[tokio::test(start_paused = true)]
async fn a_broken_machine_waits_longer_each_time_up_to_a_bound() {
    let mut mending = Mending::default();
    assert!(!mending.is_due());
    let mut last = Duration::ZERO;
    for _ in 0..80 {
        let wait = mending.broken();
        assert!(wait >= last && wait <= MEND.1);
        last = wait;
    }
    assert_eq!(last, MEND.1);
    tokio::time::advance(last).await;
    assert!(mending.is_due());
}
