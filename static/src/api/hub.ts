import { call, list } from './client';
import type { Checkpoint, Config, Invite, InviteInfo, Member, Project, Restored, Role, Server, Template, Token, User } from './types';

const enc = encodeURIComponent;

export const config = (): Promise<Config> => call('GET', '/api/config');
export const signup = (body: { name: string; email?: string; password: string; setup_code?: string }): Promise<User> =>
  call('POST', '/api/signup', body);
export const login = (name: string, password: string): Promise<User> => call('POST', '/api/login', { name, password });
export const logout = (): Promise<void> => call('POST', '/api/logout', {});
export const updateUser = (body: object): Promise<User> => call('PATCH', '/api/user', body);

export const tokens = async (): Promise<Token[]> => list(await call('GET', '/api/tokens'), 'tokens');
export const makeToken = (note: string, expires_in: number | null): Promise<Token> =>
  call('POST', '/api/tokens', expires_in === null ? { note } : { note, expires_in });
export const deleteToken = (id: string): Promise<void> => call('DELETE', `/api/tokens/${enc(id)}`);

export const templates = async (): Promise<Template[]> => list(await call('GET', '/api/templates'), 'templates');
export const projects = async (): Promise<Project[]> => list(await call('GET', '/api/projects'), 'projects');
export const project = (id: string): Promise<Project> => call('GET', `/api/projects/${enc(id)}`);
export const createProject = (title: string, template: string): Promise<Project> =>
  call('POST', '/api/projects', { title, template });
export const updateProject = (id: string, body: object): Promise<Project> =>
  call('PATCH', `/api/projects/${enc(id)}`, body);
export const deleteProject = (id: string): Promise<void> => call('DELETE', `/api/projects/${enc(id)}`);
export const forkProject = (id: string, title?: string): Promise<Project> =>
  call('POST', `/api/projects/${enc(id)}/fork`, title ? { title } : {});

export const startServer = (id: string): Promise<Server | Project> => call('POST', `/api/projects/${enc(id)}/server`, {});
export const stopServer = (id: string): Promise<void> => call('DELETE', `/api/projects/${enc(id)}/server`);
export const previewCode = (
  id: string,
  port: number | null,
): Promise<{ code: string; url: string; expires: string }> =>
  call('POST', `/api/projects/${enc(id)}/preview-codes`, port === null ? {} : { port });

export const members = async (id: string): Promise<Member[]> =>
  list(await call('GET', `/api/projects/${enc(id)}/members`), 'members');
export const setMember = (id: string, name: string, role: Role): Promise<unknown> =>
  call('PUT', `/api/projects/${enc(id)}/members/${enc(name)}`, { role });
export const removeMember = (id: string, name: string): Promise<void> =>
  call('DELETE', `/api/projects/${enc(id)}/members/${enc(name)}`);
export const makeInvite = (id: string, role: Role, expires_in: number): Promise<Invite> =>
  call('POST', `/api/projects/${enc(id)}/invites`, { role, expires_in });
export const invite = (code: string): Promise<InviteInfo> => call('GET', `/api/invites/${enc(code)}`);
export const acceptInvite = (code: string): Promise<Project> => call('POST', `/api/invites/${enc(code)}`, {});

export const checkpoints = async (id: string, signal?: AbortSignal): Promise<Checkpoint[]> =>
  list(await call('GET', `/api/projects/${enc(id)}/checkpoints`, undefined, signal), 'checkpoints');
export const makeCheckpoint = (id: string, name: string): Promise<Checkpoint> =>
  call('POST', `/api/projects/${enc(id)}/checkpoints`, { name });
export const restoreCheckpoint = (id: string, seq: number): Promise<Restored> =>
  call('POST', `/api/projects/${enc(id)}/checkpoints/${seq}/restore`, {});
export const deleteCheckpoint = (id: string, seq: number): Promise<void> =>
  call('DELETE', `/api/projects/${enc(id)}/checkpoints/${seq}`);

export interface Page<T> {
  rows: T[];
  cursor: string | null;
  total: number | null;
}

export async function adminPage<T>(
  what: 'users' | 'servers',
  query: Record<string, string>,
  signal?: AbortSignal,
): Promise<Page<T>> {
  const search = new URLSearchParams(Object.entries(query).filter(([, v]) => v));
  const answer = await call<unknown>('GET', `/api/admin/${what}?${search}`, undefined, signal);
  const more = (typeof answer === 'object' && answer !== null ? answer : {}) as Record<string, unknown>;
  const cursor = more['next'] ?? more['cursor'] ?? more['next_cursor'] ?? null;
  return {
    rows: list<T>(answer, what),
    cursor: typeof cursor === 'string' && cursor ? cursor : null,
    total: typeof more['total'] === 'number' ? more['total'] : null,
  };
}
export const adminUser = (id: string, body: object): Promise<unknown> => call('PATCH', `/api/admin/users/${enc(id)}`, body);
