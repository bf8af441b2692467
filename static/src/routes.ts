export type Route =
  | { page: 'dashboard' }
  | { page: 'login'; next: string }
  | { page: 'signup'; next: string }
  | { page: 'account' }
  | { page: 'project'; id: string }
  | { page: 'invite'; code: string }
  | { page: 'missing' };

/** Only a path on this origin may be returned to after login. */
export function safeNext(next: string | null): string {
  // no blanks either: a URL loses its tabs and newlines, and then "/<tab>/elsewhere" has two slashes
  return next && /^\/(?![/\\])[!-[\]-~]*$/.test(next) ? next : '/';
}

export function route(path: string, search = ''): Route {
  const next = safeNext(new URLSearchParams(search).get('next'));
  if (path === '/' || path === '') return { page: 'dashboard' };
  if (path === '/login') return { page: 'login', next };
  if (path === '/signup') return { page: 'signup', next };
  if (path === '/account') return { page: 'account' };
  const project = /^\/projects\/([a-z2-7]{1,64})\/?$/.exec(path);
  if (project) return { page: 'project', id: project[1]! };
  const invite = /^\/invite\/([A-Za-z0-9_-]{1,128})\/?$/.exec(path);
  if (invite) return { page: 'invite', code: invite[1]! };
  return { page: 'missing' };
}
