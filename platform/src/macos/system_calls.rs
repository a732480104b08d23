use crate::confine::ConfineError;

pub(crate) fn limit() -> Result<(), ConfineError> {
    Err(ConfineError::Unsupported)
}
