//! A poller's bookkeeping. Pure: what a stream's batches become ([`Assembler`]), in which order they go out
//! ([`Window`]), how much may be on its way ([`Budget`]), and how long to wait after a failure ([`Backoff`]),
//! and what its slot holds back at the server ([`Forecast`]).

mod assemble;
mod backoff;
mod budget;
mod pace;
mod retention;
mod window;

pub use assemble::{Assembled, Assembler, Opening, RoutedChunk};
pub use backoff::Backoff;
pub use budget::Budget;
pub use pace::Pace;
pub use retention::{Forecast, Retention, Warning};
pub use window::Window;
