use crate::harness::Target;
use std::time::Instant;
#[test]
fn timing() {
    let mut bytes = std::fs::read(crate::harness::helper()).unwrap();
    bytes.resize(5 << 20, 7);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("big"), bytes).unwrap();
    for what in ["sleep"] {
        let mut target = Target::start(&[what, "1000000"]);
        let mut times = vec![];
        for _ in 0..200 {
            let mut request = target.request(&["ready"]);
            request.program = std::fs::File::open(dir.path().join("big")).unwrap();
            let begun = Instant::now();
            let i = task_executor::inject::inject(&request).unwrap();
            times.push(begun.elapsed().as_micros());
            target.ended(i.pid);
        }
        times.sort();
        println!(
            "{what} p50 {} p90 {} p99 {} max {}",
            times[100], times[180], times[198], times[199]
        );
    }
}
