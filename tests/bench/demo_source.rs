//! What the demo's source costs: microseconds a transaction to make, to write to the WALs, and to encode as protocol
//! records. It shares two cores with everything that is shown, so it must stay far below what it measures.

use prost::Message;
use std::time::{Duration, Instant};
use untorn::demo::bank::Bank;
use untorn::demo::universe::{Step, Universe};
use untorn::demo::workload::Workload;
use untorn::proto::cdc::GetCdcRecordsResponse;
use untorn::tablet::change_log::{ChangeLog, ReadChanges};
use untorn::wal::OpId;

const TABLETS: u16 = 4;
const ACCOUNTS: u32 = 1_000;
const STEPS: u32 = 3_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure())
}

async fn measure() -> Result<(), Box<dyn std::error::Error>> {
    let universe = Universe::new(TABLETS, ACCOUNTS, 1);
    let mut bank = Bank::new(ACCOUNTS);
    let mut workload = Workload::new(TABLETS, ACCOUNTS, 1);
    let mut step = Step::new(TABLETS.into());
    let mut committed = Vec::new();
    workload.opening(&mut bank, &mut step);
    let (mut making, mut sending, mut bytes) = (Duration::ZERO, Duration::ZERO, 0);
    let mut after = vec![OpId::ZERO; TABLETS.into()];
    for number in 1..=STEPS {
        let began = Instant::now();
        workload.step(64, &mut bank, &mut step, &mut committed);
        universe.append(&mut step);
        making += began.elapsed();
        if number % 100 != 0 && number != STEPS {
            continue;
        }
        // Everything written so far becomes readable.
        tokio::time::sleep(Duration::from_millis(31)).await;
        for (name, after) in universe.names().iter().zip(&mut after) {
            loop {
                let began = Instant::now();
                let request = ReadChanges {
                    tablet: name.clone(),
                    reader: "bench".into(),
                    after: *after,
                    acknowledged: Some(*after),
                    max_bytes: 1 << 20,
                    wait: Duration::ZERO,
                    need_schemas: false,
                };
                let page = universe.read(request).await?;
                if page.records.is_empty() {
                    break;
                }
                *after = page.upto;
                let response = GetCdcRecordsResponse { records: page.records, ..GetCdcRecordsResponse::default() };
                bytes += response.encode_to_vec().len();
                sending += began.elapsed();
            }
        }
    }
    let each = |total: Duration| total.as_secs_f64() * 1e6 / committed.len() as f64;
    println!("{} transactions, {} bytes each", committed.len(), bytes / committed.len());
    println!("to make and write: {:.2} µs; to read and encode: {:.2} µs", each(making), each(sending));
    println!("history: {:.1} bytes a transaction", bank.history_bytes() as f64 / committed.len() as f64);
    Ok(())
}
