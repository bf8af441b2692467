/** Archives that become projects. `fetch` tells nothing about a body on its way, so this is an XMLHttpRequest. */
import { ApiError, cookie, problem } from './client';
import type { Project } from './types';

const KINDS: [RegExp, string][] = [
  [/\.zip$/i, 'application/zip'],
  [/\.(tar\.zst|tar\.zstd|tzst)$/i, 'application/zstd'],
];

/** What the picker offers. */
export const ACCEPTED = '.zip,.zst,.zstd,.tzst,application/zip,application/zstd';

export function archiveKind(name: string): string | null {
  return KINDS.find(([ending]) => ending.test(name))?.[1] ?? null;
}

/** A title from a file's name: `my_app-main.zip` → `my_app-main`. */
export function titleOf(name: string): string {
  const bare = KINDS.reduce((rest, [ending]) => rest.replace(ending, ''), name);
  return [...bare.trim()].slice(0, 100).join('') || 'Imported project';
}

/**
 * Send an archive. `progress` hears how much of it is under way, 0 to 1; at 1 the hub unpacks it.
 * Rejects with an `ApiError`, or an `AbortError` after `signal`.
 */
export function importProject(
  title: string,
  file: File,
  progress: (share: number) => void,
  signal: AbortSignal,
): Promise<Project> {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const kind = archiveKind(file.name);
    if (!kind) {
      reject(new ApiError(415, 'Choose a .zip or a .tar.zst.', 'archive'));
      return;
    }
    request.open('POST', `/api/projects?${new URLSearchParams({ title })}`);
    request.setRequestHeader('Accept', 'application/json');
    request.setRequestHeader('Content-Type', kind);
    const xsrf = cookie('_xsrf');
    if (xsrf) request.setRequestHeader('X-XSRFToken', decodeURIComponent(xsrf));
    request.upload.onprogress = (e) => progress(e.lengthComputable && e.total ? e.loaded / e.total : 0);
    request.upload.onload = () => progress(1);
    request.onabort = () => reject(new DOMException('The upload was cancelled.', 'AbortError'));
    // also when the file has changed or vanished since it was chosen
    request.onerror = () => reject(new ApiError(0, 'The upload broke off. Check your connection and the file, and try again.'));
    request.onload = () => {
      if (request.status >= 200 && request.status < 300) {
        try {
          resolve(JSON.parse(request.responseText) as Project);
        } catch {
          reject(new ApiError(502, 'Codevo gave no valid answer. Try again.'));
        }
        return;
      }
      const headers = { 'Content-Type': request.getResponseHeader('Content-Type') ?? '' };
      void problem(new Response(request.responseText, { status: request.status || 502, headers })).then(reject);
    };
    signal.addEventListener('abort', () => request.abort(), { once: true });
    request.send(file);
  });
}
