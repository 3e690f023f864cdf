// Requests whose failures are told, and contents that outlive the page that fetched them.

export async function checked(path, options) {
  const response = await fetch(path, options);
  if (response.ok) return response;
  const error = new Error((await response.json()).error.message);
  error.status = response.status;
  throw error;
}

export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
