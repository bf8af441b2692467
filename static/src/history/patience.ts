import { ApiError } from '../api/client';

/** The answer, or after `wait` ms words about a storage that gives none. `stop`: nobody wants it any more. */
export async function inTime<T>(ask: (signal: AbortSignal) => Promise<T>, stop: AbortSignal, wait = 20_000): Promise<T> {
  const limit = AbortSignal.timeout(wait);
  try {
    return await ask(AbortSignal.any([stop, limit]));
  } catch (e) {
    if (limit.aborted && !stop.aborted) throw new ApiError(504, 'The storage does not answer. Try again in a moment.');
    throw e;
  }
}
